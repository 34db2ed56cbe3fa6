//! Names of tensors: in messages, and where several mean one.

use super::{Header, SHOWN};
use std::collections::HashSet;

/// Of tied names, keeps the tensor under one that the index lists.
pub(super) fn prefer_listed(header: &mut Header, names: &HashSet<String>) {
    for (info, ..) in header.tensors.iter_mut().filter(|(info, ..)| !names.contains(&info.name)) {
        let listed = header.tied.iter().find(|(other, name)| **name == info.name && names.contains(*other));
        if let Some(other) = listed.map(|(other, _)| other.clone()) {
            header.tied.remove(&other);
            header.tied.values_mut().filter(|name| **name == info.name).for_each(|n| n.clone_from(&other));
            info.name = other;
        }
    }
}

/// Names for a message: the first few, and how many more there are.
pub(super) fn enumerate<T: AsRef<str>>(names: &[T]) -> String {
    enumerate_some(&names[..names.len().min(SHOWN)], names.len())
}

/// The same where only the first few of `all` are at hand.
pub(super) fn enumerate_some<T: AsRef<str>>(shown: &[T], all: usize) -> String {
    let names: Vec<String> = shown.iter().map(|n| format!("`{}`", n.as_ref())).collect();
    match all - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
