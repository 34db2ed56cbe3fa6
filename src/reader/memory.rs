//! Checkpoints whose tensors lie in memory that someone else owns.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Checkpoint, StoredTensor};
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

/// Bytes in memory, kept there as long as this lives.
#[derive(Clone)]
pub struct Blob(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Blob {
    /// Shares the bytes of their owner.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Blob(Arc::new(owner))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.bytes().len())
    }
}

/// A tensor in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    /// Name, dtype and shape.
    pub info: TensorInfo,
    /// What it lies in.
    pub blob: Blob,
    /// Byte of its first element.
    pub start: u64,
    /// Distances of neighbours in elements, if it is not contiguous.
    pub strides: Option<Vec<u64>>,
}

impl Checkpoint {
    /// Tensors in memory; `name` stands for the path in messages. Ties are other names and the names that they mean.
    pub fn in_memory(
        name: &str,
        tensors: Vec<InMemory>,
        tied: BTreeMap<String, String>,
        config: Option<serde_json::Value>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Checkpoint> {
        let mut checkpoint = Self::empty(name.as_ref(), false);
        (checkpoint.config, checkpoint.metadata, checkpoint.tied) = (config, metadata, tied);
        for InMemory { info, blob, start, strides } in tensors {
            let wrong = |what: &str| Error::format(name, format!("tensor `{}` {what}", info.name));
            let sizes = info.shape.iter().map(|&d| d as u64);
            let last = match &strides {
                Some(strides) if strides.len() != info.shape.len() => {
                    return Err(wrong("has another number of strides than of dimensions"));
                }
                Some(strides) => sizes.clone().zip(strides).try_fold(0u64, |last, (n, stride)| {
                    last.checked_add(n.saturating_sub(1).checked_mul(*stride)?)
                }),
                None => sizes.clone().try_fold(1u64, u64::checked_mul).map(|n| n.saturating_sub(1)),
            };
            let end = last
                .and_then(|last| last.checked_add(1)?.checked_mul(info.dtype.size() as u64))
                .and_then(|bytes| bytes.checked_add(start));
            if !info.shape.contains(&0) && end.is_none_or(|end| end > blob.bytes().len() as u64) {
                return Err(wrong("reaches past the end of its memory"));
            }
            let file = checkpoint.blobs.len();
            checkpoint.tensors.push(StoredTensor { info, file, start, strides, block: None });
            checkpoint.blobs.push(blob);
        }
        checkpoint.check_names()?;
        Ok(checkpoint)
    }
}
