//! Lists of modules in configs: names, and regular expressions that are matched from the start.

use regex::{Regex, RegexBuilder};
use std::collections::HashSet;

/// Bytes that a compiled expression may take; those of configs take a few thousand.
const LARGEST: usize = 1 << 20;

/// A regular expression that matches from a name's start, unless it is none.
pub fn from_start(pattern: &str) -> Option<Regex> {
    RegexBuilder::new(&format!("^(?:{pattern})")).size_limit(LARGEST).build().ok()
}

/// A list, ready to be asked.
pub struct Targets<'a> {
    names: HashSet<&'a str>,
    patterns: Vec<Regex>,
}

impl<'a> Targets<'a> {
    /// Names, and patterns after `re:`. Class names are names that no module has.
    pub fn new(targets: impl Iterator<Item = &'a str>) -> Self {
        let mut found = Targets { names: HashSet::new(), patterns: Vec::new() };
        for target in targets {
            match target.strip_prefix("re:") {
                Some(pattern) => found.patterns.extend(from_start(pattern)),
                None => drop(found.names.insert(target)),
            }
        }
        found
    }

    /// Whether a module is meant.
    pub fn contains(&self, module: &str) -> bool {
        self.names.contains(module) || self.patterns.iter().any(|pattern| pattern.is_match(module))
    }
}
