//! Layers that vLLM runs as one, under another name.

use crate::recipe::Layer;
use std::collections::{HashMap, HashSet};

/// The modules that are run as one, and the name that this one has.
const FUSED: [(&[&str], &str); 3] = [
    (&["q_proj", "k_proj", "v_proj"], "qkv_proj"),
    (&["gate_proj", "up_proj"], "gate_up_proj"),
    (&["w1", "w3"], "w13"),
];

/// A regular expression for one module, which also hits the layer that it becomes a part of.
pub fn pattern(module: &str) -> String {
    let (parent, last) = module.rsplit_once('.').map_or(("", module), |(parent, last)| (parent, last));
    let fused = FUSED[..2].iter().find(|(parts, _)| parts.contains(&last)).map(|(_, fused)| fused);
    let last = match fused {
        Some(fused) => format!("({last}|{fused})"),
        None => regex::escape(last),
    };
    if parent.is_empty() { format!("{last}$") } else { format!("{}\\.{last}$", regex::escape(parent)) }
}

/// Pairs of layers that run as one though `differ` says that they cannot, or though one is kept.
pub fn that_differ(
    layers: &[&Layer],
    kept: &[String],
    differ: impl Fn(&Layer, &Layer) -> bool,
) -> Vec<String> {
    let kept: HashSet<&str> = kept.iter().map(String::as_str).collect();
    let by_name: HashMap<&str, &Layer> = layers.iter().map(|l| (l.module.as_str(), *l)).collect();
    let mut notes = Vec::new();
    for layer in layers {
        let Some((parent, last)) = layer.module.rsplit_once('.') else { continue };
        for (siblings, _) in FUSED.iter().filter(|(parts, _)| parts.contains(&last)) {
            for sibling in siblings.iter().filter(|s| **s != last) {
                let sibling = format!("{parent}.{sibling}");
                if kept.contains(sibling.as_str()) {
                    notes.push(format!(
                        "vLLM runs {} and {sibling} as one layer and refuses that only the former is quantized",
                        layer.module
                    ));
                }
                let Some(other) = by_name.get(sibling.as_str()) else { continue };
                if layer.module < other.module && differ(layer, other) {
                    notes.push(format!(
                        "vLLM runs {} and {sibling} as one layer and refuses their different schemes",
                        layer.module
                    ));
                }
            }
        }
    }
    notes
}
