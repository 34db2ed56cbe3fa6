//! What goes along with tensors: configs, indexes, tokenizers.

use crate::{
    error::{Error, Result},
    formats,
    plan::{self, Plan},
    reader::Checkpoint,
    writer::{Destination, FileLayout, Writer},
};
use std::path::Path;

/// Bytes of everything that an output holds.
pub(super) fn output_bytes(checkpoint: &Checkpoint, plan: &Plan, destination: &Destination) -> Result<u64> {
    let mut needed = 0;
    for file in &plan.files {
        needed += file.size()?;
    }
    if matches!(destination, Destination::Directory(_)) && checkpoint.is_directory() {
        for companion in checkpoint.companions() {
            let path = checkpoint.path().join(companion);
            let bytes = path.metadata().map_err(Error::io("read", path))?.len();
            needed += bytes * plan.folders.len() as u64;
        }
    }
    Ok(needed)
}

/// Adds configs and indexes, and copies what else the input's directory holds, to every folder.
pub(super) fn add_companions(checkpoint: &Checkpoint, plan: &Plan, writer: &mut Writer) -> Result<()> {
    for folder in &plan.folders {
        let place = |name: &Path| Path::new(&folder.name).join(name);
        let files: Vec<&FileLayout> = plan.files.iter().filter(|file| file.folder == folder.name).collect();
        if files.len() > 1 {
            let index = pretty(&plan::index(&files));
            writer.add_file(&place(Path::new("model.safetensors.index.json")), index.as_bytes())?;
        }
        if !checkpoint.is_directory() {
            continue;
        }
        if let Some(config) = &folder.config {
            writer.add_file(&place(Path::new("config.json")), pretty(config).as_bytes())?;
        }
        let entry = folder.config.as_ref().and_then(|config| config.get("quantization_config"));
        if let (Some(name), Some(entry)) = (folder.config_file, entry) {
            writer.add_file(&place(Path::new(name)), pretty(entry).as_bytes())?;
        }
        for companion in checkpoint.companions().iter().filter(|c| !is_config_of_a_format(c)) {
            writer.copy_file(&checkpoint.path().join(companion), &place(companion))?;
        }
    }
    Ok(())
}

/// Files that say how the input was quantized: they would contradict the output.
pub(super) fn is_config_of_a_format(companion: &Path) -> bool {
    formats::ALL.iter().any(|format| format.config_file().is_some_and(|name| companion == Path::new(name)))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// Files of the input that the output would take the place of.
pub(super) fn replaced_input(checkpoint: &Checkpoint, output: &Path) -> Option<String> {
    // what does not exist yet replaces nothing
    let place = output.canonicalize().ok()?;
    let companions = checkpoint.companions().iter().map(|c| checkpoint.path().join(c));
    let files = checkpoint.files().iter().cloned().chain(companions).chain([checkpoint.path().to_owned()]);
    let lost =
        files.into_iter().find(|file| file.canonicalize().is_ok_and(|file| file.starts_with(&place)))?;
    Some(format!(
        "{}: the output would replace the input ({}), which not even --force does; --output names another place",
        output.display(),
        lost.display()
    ))
}
