//! `data.pkl`: a state dict as torch pickles it, less the memo entries that nothing refers to.

use std::collections::BTreeMap;

use crate::tensor::{Dtype, TensorInfo};

/// Modules and names, as the GLOBAL opcode has them.
const ORDERED_DICT: &str = "collections\nOrderedDict\n";
const REBUILD_V2: &str = "torch._utils\n_rebuild_tensor_v2\n";
const REBUILD_V3: &str = "torch._utils\n_rebuild_tensor_v3\n";
const UNTYPED: &str = "torch.storage\nUntypedStorage\n";

// Opcodes of protocol 2.
const MARK: u8 = b'(';
const STOP: u8 = b'.';
const BINPERSID: u8 = b'Q';
const REDUCE: u8 = b'R';
const BUILD: u8 = b'b';
const SETITEMS: u8 = b'u';
const EMPTY_DICT: u8 = b'}';
const EMPTY_TUPLE: u8 = b')';
const TUPLE: u8 = b't';
const NEWFALSE: u8 = 0x89;

/// The pickle of an `OrderedDict` of tensors, from key, number of the storage and tensor of every item.
///
/// No shape overflows `i64`, and no text is longer than `u32::MAX`: the caller saw to that.
pub(super) fn state_dict(
    items: &[(&str, usize, &TensorInfo)],
    attributes: &BTreeMap<String, String>,
) -> Vec<u8> {
    let mut p = Pickle { bytes: vec![0x80, 2], memo: Vec::new() };
    p.global(ORDERED_DICT);
    p.op([EMPTY_TUPLE, REDUCE, MARK]);
    for &(key, storage, tensor) in items {
        p.text(key);
        p.tensor(storage, tensor);
    }
    p.op([SETITEMS]);
    if !attributes.is_empty() {
        p.op([EMPTY_DICT, MARK]);
        attributes.iter().flat_map(|(name, value)| [name, value]).for_each(|text| p.text(text));
        p.op([SETITEMS, BUILD]);
    }
    p.op([STOP]);
    p.bytes
}

struct Pickle {
    bytes: Vec<u8>,
    /// What was written before; fewer than 256, as these are the constants of this file.
    memo: Vec<&'static str>,
}

impl Pickle {
    fn op<const N: usize>(&mut self, opcodes: [u8; N]) {
        self.bytes.extend(opcodes);
    }

    fn text(&mut self, text: &str) {
        self.op([b'X']);
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn int(&mut self, number: u64) {
        let bytes = number.to_le_bytes();
        match number {
            0..=0xff => self.op([b'K', bytes[0]]),
            0x100..=0xffff => self.op([b'M', bytes[0], bytes[1]]),
            0x1_0000..=0x7fff_ffff => self.op([b'J', bytes[0], bytes[1], bytes[2], bytes[3]]),
            _ => {
                // As few bytes as hold the number and a sign bit.
                let length = (u64::BITS - number.leading_zeros()) as usize / 8 + 1;
                self.op([0x8a, length as u8]);
                self.bytes.extend(&bytes[..length]);
            }
        }
    }

    fn tuple(&mut self, numbers: &[u64]) {
        let [before, after]: [&[u8]; 2] = match numbers.len() {
            0 => [&[], &[EMPTY_TUPLE]],
            // TUPLE1 to TUPLE3
            short @ 1..=3 => [&[], &[0x84 + short as u8]],
            _ => [&[MARK], &[TUPLE]],
        };
        self.bytes.extend(before);
        numbers.iter().for_each(|&n| self.int(n));
        self.bytes.extend(after);
    }

    /// Writes what is a constant of this file, or refers to where it was written before.
    fn once(&mut self, what: &'static str, write: impl FnOnce(&mut Self)) {
        if let Some(slot) = self.memo.iter().position(|&known| known == what) {
            return self.op([b'h', slot as u8]);
        }
        write(self);
        self.op([b'q', self.memo.len() as u8]);
        self.memo.push(what);
    }

    fn global(&mut self, name: &'static str) {
        self.once(name, |p| {
            p.op([b'c']);
            p.bytes.extend(name.as_bytes());
        });
    }

    /// A contiguous tensor at the start of a storage of its own size.
    fn tensor(&mut self, storage: usize, tensor: &TensorInfo) {
        let (class, dtype) = class(tensor.dtype);
        self.global(if dtype.is_none() { REBUILD_V2 } else { REBUILD_V3 });
        self.op([MARK, MARK]);
        self.once("storage", |p| p.text("storage"));
        self.global(class);
        self.text(&storage.to_string());
        self.once("cpu", |p| p.text("cpu"));
        // An untyped storage counts bytes.
        self.int(if dtype.is_none() { tensor.elements() } else { tensor.bytes() });
        self.op([TUPLE, BINPERSID]);
        self.int(0);
        let shape: Vec<u64> = tensor.shape.iter().map(|&d| d as u64).collect();
        self.tuple(&shape);
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i].max(1);
        }
        self.tuple(&strides);
        self.op([NEWFALSE]);
        self.global(ORDERED_DICT);
        self.op([EMPTY_TUPLE, REDUCE]);
        if let Some(dtype) = dtype {
            self.global(dtype);
        }
        self.op([TUPLE, REDUCE]);
    }
}

/// The storage class, and for dtypes that came after those classes, the dtype in an untyped storage.
fn class(dtype: Dtype) -> (&'static str, Option<&'static str>) {
    use Dtype::*;
    match dtype {
        BOOL => ("torch\nBoolStorage\n", None),
        U8 => ("torch\nByteStorage\n", None),
        I8 => ("torch\nCharStorage\n", None),
        I16 => ("torch\nShortStorage\n", None),
        F16 => ("torch\nHalfStorage\n", None),
        BF16 => ("torch\nBFloat16Storage\n", None),
        I32 => ("torch\nIntStorage\n", None),
        F32 => ("torch\nFloatStorage\n", None),
        I64 => ("torch\nLongStorage\n", None),
        F64 => ("torch\nDoubleStorage\n", None),
        C64 => ("torch\nComplexFloatStorage\n", None),
        C128 => ("torch\nComplexDoubleStorage\n", None),
        F8_E4M3 => (UNTYPED, Some("torch\nfloat8_e4m3fn\n")),
        F8_E5M2 => (UNTYPED, Some("torch\nfloat8_e5m2\n")),
        F8_E4M3FNUZ => (UNTYPED, Some("torch\nfloat8_e4m3fnuz\n")),
        F8_E5M2FNUZ => (UNTYPED, Some("torch\nfloat8_e5m2fnuz\n")),
        F8_E8M0 => (UNTYPED, Some("torch\nfloat8_e8m0fnu\n")),
        C32 => (UNTYPED, Some("torch\ncomplex32\n")),
        U16 => (UNTYPED, Some("torch\nuint16\n")),
        U32 => (UNTYPED, Some("torch\nuint32\n")),
        U64 => (UNTYPED, Some("torch\nuint64\n")),
    }
}
