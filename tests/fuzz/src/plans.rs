//! Plans: what must hold of one, whatever it was made of.

use super::{place, sound};
use monoquant::{
    cli,
    plan::{Plan, Request},
    quantize::{OnNonFinite, Settings, prepare},
    tensor::TensorInfo,
};
use std::{collections::HashSet, path::Path};

/// What options ask for, a line each; None if they are refused. Files that they name are not read.
pub fn request(options: &str) -> Option<Request> {
    let options: Vec<String> = options.lines().map(str::to_owned).collect();
    if options.iter().any(|option| option.starts_with("--cal")) {
        return None;
    }
    cli::request(&options).map_err(sound).ok().map(|(request, _)| request)
}

/// Plans for a checkpoint by several lists of options, with such an output.
pub fn planned(path: &Path, output: &str, options: &[&str]) {
    let settings = Settings { output: Some(place(output)), ..Settings::default() };
    for options in options {
        let request = request(options).expect("options of a target");
        match prepare(path, &request, OnNonFinite::Refuse, &settings) {
            Ok(prepared) => consistent(&prepared.plan, &prepared.tensors),
            Err(e) => sound(e),
        }
    }
}

/// Every output is made by one job, lies in one file under a name of its own, and every job reads what there is.
pub fn consistent(plan: &Plan, tensors: &[TensorInfo]) {
    let mut made = HashSet::new();
    for job in &plan.jobs {
        let (source, view) = (&tensors[job.source], &job.view);
        if view.elements() > 0 {
            let last = view.offset
                + (view.rows as u64 - 1) * view.row_stride
                + (view.cols as u64 - 1) * view.col_stride;
            assert!(last < source.elements(), "{job:?} reads beyond {source:?}");
        }
        assert!(job.row < plan.rows.len() && !job.outputs.is_empty(), "{job:?}");
        for place in &job.outputs {
            assert!(place.tensor < plan.files[place.file].tensors.len(), "{place:?}");
            if job.target.is_none() {
                assert!(made.insert((place.file, place.tensor)), "{place:?} is made twice");
            }
        }
    }
    let mut names = HashSet::new();
    for (number, file) in plan.files.iter().enumerate() {
        for (i, tensor) in file.tensors.iter().enumerate() {
            assert!(names.insert((&file.folder, &tensor.name)), "{} is there twice", tensor.name);
            let part = plan.jobs.iter().any(|job| job.target.is_some());
            assert!(part || made.contains(&(number, i)), "{} is made by no job", tensor.name);
        }
        assert!(file.size().unwrap() >= file.tensors.iter().map(TensorInfo::bytes).sum());
    }
    let after: u64 = plan.files.iter().flat_map(|file| &file.tensors).map(TensorInfo::bytes).sum();
    assert_eq!(plan.bytes_after(), after, "rows and files differ");
}
