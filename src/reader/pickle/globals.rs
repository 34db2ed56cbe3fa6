//! The classes and functions that a pickle may name. None of them is ever called.

/// What rebuilds tensors.
const TENSORS: [&str; 13] = [
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage",
    "torch._utils._rebuild_wrapper_subclass",
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch._tensor._rebuild_from_type_v2",
];

/// What lies beside tensors in the checkpoints that people save: numbers, paths, dates, arguments.
const OTHERS: [&str; 51] = [
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bool",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    // the class that it makes an object of is named next, and is what the message should name
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.UninitializedParameter",
    "torch.serialization._get_layout",
    "types.SimpleNamespace",
    "uuid.UUID",
];

/// The name in today's Python and torch.
pub(super) fn canonical(module: &str, name: &str) -> String {
    let module = match module {
        "__builtin__" => "builtins",
        "copy_reg" => "copyreg",
        "torch.tensor" => "torch._tensor",
        module => module,
    };
    format!("{module}.{name}")
}

pub(super) fn allowed(name: &str) -> bool {
    TENSORS.contains(&name) || OTHERS.contains(&name) || of_torch(name) || of_numpy(name)
}

/// Dtypes, layouts and quantization schemes (lower case), and classes of storages.
fn of_torch(name: &str) -> bool {
    const SCHEMES: [&str; 8] = [
        "per_tensor_affine",
        "per_tensor_symmetric",
        "per_channel_affine",
        "per_channel_symmetric",
        "per_channel_affine_float_qparams",
        "strided",
        "sparse_coo",
        "sparse_csr",
    ];
    let Some((module, name)) = name.rsplit_once('.') else { return false };
    match module {
        "torch" if is_dtype(name) || SCHEMES.contains(&name) => true,
        "torch" | "torch.cuda" | "torch.storage" => {
            name.ends_with("Storage") && !name.starts_with('_') || name.ends_with("Tensor")
        }
        _ => false,
    }
}

fn is_dtype(name: &str) -> bool {
    const KINDS: [&str; 10] =
        ["float", "bfloat", "int", "uint", "complex", "bool", "qint", "quint", "bits", "double"];
    const PLAIN: [&str; 5] = ["half", "long", "short", "cfloat", "cdouble"];
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(plain)
        && (PLAIN.contains(&name)
            || KINDS.iter().any(|kind| {
                name.strip_prefix(kind)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_digit()))
            }))
}

/// Classes of numpy's dtypes, which newer versions name in pickles.
fn of_numpy(name: &str) -> bool {
    let class = name.strip_prefix("numpy.dtypes.").or_else(|| name.strip_prefix("numpy."));
    class.is_some_and(|class| {
        class.ends_with("DType") && class.chars().all(char::is_alphanumeric)
            || ["float16", "float32", "float64", "int32", "int64", "bool_"].contains(&class)
    })
}

/// Classes compiled by TorchScript, which have no code here, and the makers of its typed lists.
pub(super) fn of_script(name: &str) -> bool {
    name.starts_with("__torch__.") || name.starts_with("torch.jit._pickle.")
}
