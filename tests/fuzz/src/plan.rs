//! Tensors of any names, dtypes and shapes, a config and options, as text: the plan. A line a tensor: a name, a dtype and
//! dimensions with spaces between; `#` and a config.json; any other line is an option of `monoquant quantize`.
#![no_main]

use monoquant::{
    plan,
    tensor::{Dtype, TensorInfo},
};
use serde_json::Value;

/// Tensors of a checkpoint that was read: no name twice, no more bytes than 64 bits can count, all together.
fn tensor(line: &str, so_far: &[TensorInfo]) -> Option<TensorInfo> {
    let mut words = line.split(' ');
    let name = words.next().filter(|name| !name.is_empty())?.to_owned();
    let dtype = Dtype::from_name(words.next()?)?;
    let shape = words.map(|word| word.parse().ok()).collect::<Option<Vec<usize>>>()?;
    let bytes = shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d as u64))?;
    let all = so_far.iter().map(TensorInfo::bytes).try_fold(bytes, u64::checked_add)?;
    // what a file can hold
    let fits = all < 1 << 62 && shape.len() <= 64 && so_far.iter().all(|other| other.name != name);
    fits.then_some(TensorInfo { name, dtype, shape })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (mut tensors, mut config, mut options) = (Vec::new(), None, Vec::new());
    for line in text.lines() {
        if let Some(json) = line.strip_prefix('#') {
            config = serde_json::from_str::<Value>(json).ok().filter(Value::is_object);
        } else if let Some(tensor) = tensor(line, &tensors) {
            tensors.push(tensor);
        } else {
            options.push(line);
        }
    }
    fuzz::within(bytes.len() + fuzz::A_REGEX, || {
        let Some(request) = fuzz::request(&options.join("\n")) else { return };
        match plan::plan(&tensors, config.as_ref(), &request, &Default::default()) {
            Err(e) => fuzz::sound(e),
            Ok(plan) => fuzz::consistent(&plan, &tensors),
        }
    });
});
