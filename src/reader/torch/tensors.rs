//! Tensors as pickles describe them: a storage, an offset, sizes and strides.

use super::super::pickle::{Arena, Id, Value};
use crate::tensor::Dtype;

/// A tensor before its storage has a place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Described {
    /// Key of the storage.
    pub storage: String,
    /// Elements and size of one element of the storage as a whole.
    pub storage_elements: u64,
    pub storage_elem: u64,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// In elements.
    pub offset: u64,
    /// In elements; none if the tensor is contiguous.
    pub strides: Option<Vec<u64>>,
}

impl Described {
    /// Bytes of the storage as a whole.
    pub fn storage_bytes(&self) -> u64 {
        self.storage_elements.saturating_mul(self.storage_elem)
    }
}

/// What a value is if it is a tensor: where it lies, or why it is not read.
pub(super) fn describe(arena: &Arena, id: Id) -> Option<Result<Described, String>> {
    tensor(arena, id, 0)
}

/// Parameters wrap tensors, and each other in a hostile pickle.
const DEEPEST: usize = 8;

fn tensor(arena: &Arena, id: Id, depth: usize) -> Option<Result<Described, String>> {
    let Value::Call { function, arguments, .. } = arena.get(id) else { return None };
    let function = arena.global(*function)?;
    let arguments = arena.items(*arguments).unwrap_or_default();
    rebuilt(arena, function, arguments, depth)
}

fn rebuilt(
    arena: &Arena,
    function: &str,
    arguments: &[Id],
    depth: usize,
) -> Option<Result<Described, String>> {
    let refused = |what: &str| Some(Err(what.to_owned()));
    if depth > DEEPEST {
        return refused("is wrapped too often");
    }
    let inner = |i: usize| {
        let inner = arguments.get(i).and_then(|&id| tensor(arena, id, depth + 1));
        Some(
            inner
                .unwrap_or_else(|| Err(format!("is rebuilt by {function} from something that is no tensor"))),
        )
    };
    match function.strip_prefix("torch._utils.").unwrap_or(function) {
        "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" => {
            Some(dense(arena, function.ends_with("_v3"), arguments))
        }
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => inner(0),
        "torch.nn.parameter.Parameter" | "torch.nn.parameter.Buffer" if !arguments.is_empty() => inner(0),
        "_rebuild_device_tensor_from_cpu_tensor" => inner(0),
        "torch._tensor._rebuild_from_type_v2" => {
            let call = arguments.first().and_then(|&f| arena.global(f)).zip(arguments.get(2));
            let Some((function, &arguments)) = call else {
                return refused("is a tensor of a class of its own, without what rebuilds it");
            };
            rebuilt(arena, function, arena.items(arguments).unwrap_or_default(), depth + 1)
        }
        "_rebuild_qtensor" => refused(
            "is quantized by torch; dequantize it there first: {k: v.dequantize() if v.is_quantized else v …}",
        ),
        "_rebuild_sparse_tensor" => refused("is sparse; make it dense first: tensor.to_dense()"),
        "_rebuild_nested_tensor" => refused("is a nested tensor; save its parts one by one"),
        "_rebuild_meta_tensor_no_storage" => refused("is on the device `meta`: the file holds no data of it"),
        "_rebuild_wrapper_subclass" | "_rebuild_device_tensor_from_numpy" => {
            refused("is of a tensor subclass that keeps no plain data; save plain tensors")
        }
        "torch.nn.parameter.UninitializedParameter" => {
            refused("is a parameter that was never initialized; run the model once before saving")
        }
        _ => None,
    }
}

/// `(storage, offset, size, stride, requires_grad, hooks, [dtype,] metadata)`
fn dense(arena: &Arena, typed: bool, arguments: &[Id]) -> Result<Described, String> {
    let &[storage, offset, size, stride, ref rest @ ..] = arguments else {
        return Err(format!("is rebuilt from {} values instead of 4 or more", arguments.len()));
    };
    let Value::Persistent(storage) = arena.get(storage) else {
        return Err(format!("lies in a {} instead of a storage", arena.kind(storage)));
    };
    let (class, key, elements) = self::storage(arena, *storage)?;
    let storage_elem = elem_of(class).ok_or_else(|| unknown(class))?;
    let dtype = match typed {
        true => {
            let name = rest.get(2).and_then(|&id| arena.global(id)).unwrap_or("nothing");
            Dtype::from_torch(name).ok_or_else(|| unknown(name))?
        }
        false => of_storage(class).ok_or_else(|| unknown(class))?,
    };
    if let Some(&metadata) = rest.get(if typed { 3 } else { 2 }) {
        let on = |key: &str| {
            let pairs = arena.dict(metadata).unwrap_or_default();
            pairs.iter().any(|&(k, v)| arena.text(k) == Some(key) && matches!(arena.get(v), Value::Bool))
        };
        // torch only writes the flags that are set
        if on("conj") || on("neg") {
            return Err("is a conjugated or negated view; save tensor.resolve_conj().resolve_neg()".into());
        }
    }
    let numbers = |id: Id, what: &str| -> Result<Vec<u64>, String> {
        let items = arena.items(id).ok_or_else(|| format!("has {what} that are no tuple"))?;
        // torch has tensors of up to 64 dimensions
        if items.len() > 64 {
            return Err(format!("has {} dimensions; accepted: up to 64", items.len()));
        }
        let number = |&id: &Id| arena.int(id).and_then(|n| u64::try_from(n).ok());
        let numbers: Option<Vec<u64>> = items.iter().map(number).collect();
        numbers.ok_or_else(|| format!("has {what} that are no whole numbers from 0 on"))
    };
    let (shape, strides) = (numbers(size, "sizes")?, numbers(stride, "strides")?);
    if shape.len() != strides.len() {
        return Err(format!("has {} sizes and {} strides", shape.len(), strides.len()));
    }
    let offset = arena.int(offset).and_then(|n| u64::try_from(n).ok());
    let offset = offset.ok_or("has an offset that is no whole number from 0 on")?;
    let described = Described {
        storage: key,
        storage_elements: elements,
        storage_elem,
        dtype,
        strides: (!is_contiguous(&shape, &strides)).then_some(strides),
        shape,
        offset,
    };
    check(&described)?;
    Ok(described)
}

/// Class, key and number of elements of `('storage', class, key, device, elements[, view])`.
fn storage(arena: &Arena, id: Id) -> Result<(&str, String, u64), String> {
    let wrong = || "lies in a storage that is not described as torch does".to_owned();
    let (what, class, key, elements, view) = match *arena.items(id).ok_or_else(wrong)? {
        [what, class, key, _, elements] => (what, class, key, elements, None),
        [what, class, key, _, elements, view] => (what, class, key, elements, Some(view)),
        _ => return Err(wrong()),
    };
    if arena.text(what) != Some("storage") {
        return Err(wrong());
    }
    if view.is_some_and(|view| !matches!(arena.get(view), Value::None)) {
        return Err(
            "lies in a view of a storage, which torch wrote before 0.4; load and save it with torch".into()
        );
    }
    let class = arena.global(class).and_then(|name| name.rsplit('.').next()).ok_or_else(wrong)?;
    let key = match arena.get(key) {
        Value::Text(key) => key.to_string(),
        Value::Int(key) => key.to_string(),
        _ => return Err(wrong()),
    };
    let elements = arena.int(elements).and_then(|n| u64::try_from(n).ok()).ok_or_else(wrong)?;
    Ok((class, key, elements))
}

fn unknown(name: &str) -> String {
    let accepted = Dtype::ALL.map(Dtype::name).join(", ");
    format!("has the dtype {name}, which is not read; accepted: {accepted}")
}

/// The dtype of a class of storages of old.
fn of_storage(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        "ComplexFloatStorage" => Dtype::C64,
        "ComplexDoubleStorage" => Dtype::C128,
        _ => return None,
    })
}

/// Bytes of one element of a class of storages.
fn elem_of(class: &str) -> Option<u64> {
    match class {
        "UntypedStorage" | "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => {
            Some(1)
        }
        "QInt32Storage" => Some(4),
        class => of_storage(class).map(|d| d.size() as u64),
    }
}

/// Key, elements and bytes an element of a storage that a pickle refers to.
pub(super) fn extent(arena: &Arena, id: Id) -> Option<(String, (u64, u64))> {
    let (class, key, elements) = storage(arena, id).ok()?;
    Some((key, (elements, elem_of(class)?)))
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1u64;
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        if n != 1 && stride != expected {
            return false;
        }
        expected = expected.saturating_mul(n);
    }
    true
}

/// A view may repeat elements of its storage (`expand`), up to this many bytes in all.
const LARGEST_EXPANDED: u64 = 1 << 30;

/// Whether all elements lie in the storage.
fn check(tensor: &Described) -> Result<(), String> {
    let Described { shape, strides, offset, .. } = tensor;
    let too_large = || format!("has the shape {shape:?}, of more bytes than 64 bits can count");
    let elem = tensor.dtype.size() as u64;
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
    let bytes = elements.checked_mul(elem).ok_or_else(too_large)?;
    let stored = tensor.storage_elements.checked_mul(tensor.storage_elem);
    let stored = stored.ok_or("lies in a storage of more bytes than 64 bits can count")?;
    if elements == 0 {
        return Ok(());
    }
    let last = match strides {
        None => elements - 1,
        Some(strides) => shape
            .iter()
            .zip(strides)
            .try_fold(0u64, |last, (&n, &stride)| last.checked_add((n - 1).checked_mul(stride)?))
            .ok_or_else(too_large)?,
    };
    let end = offset.checked_add(last).and_then(|n| n.checked_add(1)).and_then(|n| n.checked_mul(elem));
    if end.is_none_or(|end| end > stored) {
        return Err(format!("reaches past the end of its storage of {stored} bytes"));
    }
    if bytes > stored && bytes > LARGEST_EXPANDED {
        return Err(format!(
            "repeats the elements of a storage of {stored} bytes up to {bytes} bytes; save it contiguous"
        ));
    }
    Ok(())
}
