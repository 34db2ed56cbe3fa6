//! What is special about GGUF models: what requests mean for them, and the key-values of the output.

use super::touches;
use crate::{
    error::{Error, Result},
    plan::{self, Plan, Request, Work},
    reader::Checkpoint,
    recipe::choose,
    tensor::TensorInfo,
    writer::{Container, Destination},
};
use std::sync::Arc;

/// The request as the checkpoint's format lets it be understood.
pub(super) fn adapted(request: &Request, checkpoint: &Checkpoint) -> Result<Request> {
    let layouts = || request.formats.iter().filter(|format| format.weight_only());
    let recipe = match checkpoint.gguf() {
        Some(_) if layouts().next().is_some() => {
            let names: Vec<&str> = layouts().map(|format| format.name()).collect();
            return Err(Error::refused(format!(
                "--format {}: is for models in safetensors or torch files, whose names its loaders know; GGUF models \
                 become GGUF's blocks",
                names.join(",")
            )));
        }
        Some(_) => plan::gguf::recipe(&request.recipe)?,
        None => request.recipe.clone(),
    };
    Ok(Request { recipe, formats: request.formats.clone(), ..*request })
}

/// Tensors whose values matter.
pub(super) fn touched(
    checkpoint: &Checkpoint,
    tensors: &[TensorInfo],
    request: &Request,
    planned: &Result<Plan>,
) -> Vec<usize> {
    match (checkpoint.gguf(), planned) {
        (Some(_), Ok(plan)) => {
            plan.jobs.iter().filter(|job| job.work != Work::Copy).map(|job| job.source).collect()
        }
        (Some(_), Err(_)) => Vec::new(),
        (None, _) => {
            let choices = choose(&request.recipe, tensors, checkpoint.config());
            choices.iter().enumerate().filter(|(_, c)| touches(c)).map(|(i, _)| i).collect()
        }
    }
}

/// Gives the output's GGUF file its key-values, or says why it can have none.
pub(super) fn set_keys(
    plan: &mut Plan,
    checkpoint: &Checkpoint,
    destination: &Destination,
) -> Option<String> {
    let path = destination.path().display();
    match (destination.container(), checkpoint.gguf()) {
        (Container::Gguf, None) => Some(format!(
            "{path}: a GGUF file also says how the model is built, and holds its tokenizer; accepted: a GGUF model as \
             input (llama.cpp's convert_hf_to_gguf.py makes it), or --output NAME.safetensors"
        )),
        (Container::Gguf, Some(keys)) => {
            let mut keys = keys.clone();
            // the output is one file
            keys.remove("split.");
            if let Some(file_type) = plan.file_type {
                keys.set_number("general.quantization_version", 2);
                keys.set_number("general.file_type", file_type);
            }
            let keys = Arc::new(keys);
            plan.files.iter_mut().for_each(|file| file.gguf = Some(keys.clone()));
            None
        }
        (_, Some(_)) if plan.files.iter().any(|file| !file.blocks.is_empty()) => {
            Some(format!("{path}: only GGUF files hold blocks; accepted: --output NAME.gguf"))
        }
        _ => None,
    }
}
