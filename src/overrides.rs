//! `--override`: another scheme for the layers whose names match.

use crate::{
    error::{Error, Result},
    observer::Observer,
    scheme::{Activations, Scheme, Strategy},
};
use regex::Regex;

/// Keys that an override takes, with their values.
pub const ACCEPTED: &str = "bits=4|8|16, group-size=N|channel, strategy=tensor|channel|group, \
                            scheme=symmetric|asymmetric, observer=minmax|percentile|histogram|mse";

const KEYS: [&str; 5] = ["bits", "group-size", "strategy", "scheme", "observer"];
/// Group size of int4 weights, and of `strategy=group`, where none is given.
const GROUP: usize = 128;
/// Percentile of `observer=percentile` where the recipe itself names none.
const PERCENTILE: f64 = 99.99;

/// Another scheme for some layers: `REGEX=KEY=VALUE[,KEY=VALUE…]`, e.g. `down_proj=bits=8,group-size=64`.
#[derive(Debug, Clone)]
pub struct Override {
    /// Searched in the full tensor name.
    pub pattern: Regex,
    /// What differs from the recipe's scheme.
    pub changes: Changes,
}

/// What an override says; `None` where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Changes {
    /// 4, 8, or 16 for "leave unquantized".
    pub bits: Option<u32>,
    /// Which weights share a scale, from `group-size` or `strategy`.
    pub grain: Option<Grain>,
    /// Whether the range is centred on zero.
    pub symmetric: Option<bool>,
    /// How the range is found.
    pub observer: Option<&'static str>,
}

/// Which weights share a scale, as an override says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grain {
    /// The whole matrix.
    Tensor,
    /// A row.
    Channel,
    /// Neighbours within a row; `None` is `strategy=group` without a size.
    Group(Option<usize>),
}

impl Override {
    /// Whether it says that ranges are centred on zero, or that they are not.
    pub fn states_symmetry(&self) -> bool {
        self.changes.symmetric.is_some()
    }
}

impl Changes {
    /// These changes, with those of `later` on top.
    pub fn then(self, later: Changes) -> Changes {
        let grain = match (self.grain, later.grain) {
            // `strategy=group` alone keeps the size that an earlier override gave.
            (Some(Grain::Group(size @ Some(_))), Some(Grain::Group(None))) => Some(Grain::Group(size)),
            (earlier, later) => later.or(earlier),
        };
        Changes {
            bits: later.bits.or(self.bits),
            grain,
            symmetric: later.symmetric.or(self.symmetric),
            observer: later.observer.or(self.observer),
        }
    }

    /// The changed scheme, or `None` for 16 bits.
    pub fn apply(self, base: Scheme) -> Option<Scheme> {
        let mut scheme = base;
        match self.bits {
            Some(16) => return None,
            Some(bits) if bits != base.bits => {
                // No runtime mixes int8 activations with other widths, so another width is weight-only.
                scheme.bits = bits;
                scheme.activations = Activations::Float;
                scheme.strategy =
                    if bits == 4 { Strategy::Group { group_size: GROUP } } else { Strategy::Channel };
                if base.observer == Observer::usual(base.bits) {
                    scheme.observer = Observer::usual(bits);
                }
            }
            _ => {}
        }
        match self.grain {
            Some(Grain::Tensor) => scheme.strategy = Strategy::Tensor,
            Some(Grain::Channel) => scheme.strategy = Strategy::Channel,
            Some(Grain::Group(size)) => {
                let group_size = match (size, scheme.strategy, base.strategy) {
                    (Some(size), ..) => size,
                    (None, Strategy::Group { group_size }, _) => group_size,
                    (None, _, Strategy::Group { group_size }) => group_size,
                    (None, ..) => GROUP,
                };
                scheme.strategy = Strategy::Group { group_size };
            }
            None => {}
        }
        if let Some(symmetric) = self.symmetric {
            scheme.symmetric = symmetric;
        }
        if let Some(name) = self.observer.filter(|&name| name != base.observer.name()) {
            scheme.observer = match name {
                "percentile" => Observer::Percentile(PERCENTILE),
                "histogram" => Observer::Histogram,
                "mse" => Observer::Mse { both_signs: true },
                _ => Observer::MinMax,
            };
        }
        Some(scheme)
    }

    fn set(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        let bad = |accepted: &str| Err(format!("{key}={value}: {key} is {accepted}"));
        let given_twice = || Err(format!("{key} is given twice"));
        match key {
            "bits" => {
                if self.bits.is_some() {
                    return given_twice();
                }
                self.bits = match value {
                    "4" => Some(4),
                    "8" => Some(8),
                    "16" => Some(16),
                    _ => return bad("4, 8 or 16 (16 leaves the layer unquantized)"),
                };
            }
            "group-size" => {
                let said = match value {
                    "channel" => Grain::Channel,
                    _ => match value.parse::<usize>() {
                        Ok(size) if size > 0 => Grain::Group(Some(size)),
                        _ => return bad("a number of weights, at least 1, or channel"),
                    },
                };
                self.grain = Some(match (self.grain, said) {
                    (None | Some(Grain::Group(None)), said @ Grain::Group(_)) => said,
                    (None | Some(Grain::Channel), Grain::Channel) => Grain::Channel,
                    _ => return Err(format!("group-size={value} contradicts an earlier part")),
                });
            }
            "strategy" => {
                let said = match value {
                    "tensor" => Grain::Tensor,
                    "channel" => Grain::Channel,
                    "group" => Grain::Group(None),
                    _ => return bad("tensor, channel or group"),
                };
                self.grain = Some(match (self.grain, said) {
                    (None, said) => said,
                    (Some(size @ Grain::Group(Some(_))), Grain::Group(None)) => size,
                    (Some(Grain::Channel), Grain::Channel) => Grain::Channel,
                    _ => return Err(format!("strategy={value} contradicts an earlier part")),
                });
            }
            "scheme" => {
                if self.symmetric.is_some() {
                    return given_twice();
                }
                self.symmetric = match value {
                    "symmetric" => Some(true),
                    "asymmetric" => Some(false),
                    _ => return bad("symmetric or asymmetric"),
                };
            }
            "observer" => {
                if self.observer.is_some() {
                    return given_twice();
                }
                match Observer::NAMES.into_iter().find(|&name| name == value) {
                    Some(name) => self.observer = Some(name),
                    None => return bad("minmax, percentile, histogram or mse"),
                }
            }
            _ => return Err(format!("'{key}' is not a key")),
        }
        Ok(())
    }
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if let Some(bits) = self.bits {
            parts.push(format!("bits={bits}"));
        }
        match self.grain {
            Some(Grain::Tensor) => parts.push("strategy=tensor".into()),
            Some(Grain::Channel) => parts.push("strategy=channel".into()),
            Some(Grain::Group(None)) => parts.push("strategy=group".into()),
            Some(Grain::Group(Some(size))) => parts.push(format!("group-size={size}")),
            None => {}
        }
        if let Some(symmetric) = self.symmetric {
            parts.push(format!("scheme={}", if symmetric { "symmetric" } else { "asymmetric" }));
        }
        if let Some(observer) = self.observer {
            parts.push(format!("observer={observer}"));
        }
        f.write_str(&parts.join(","))
    }
}

impl std::fmt::Display for Override {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.pattern, self.changes)
    }
}

impl std::str::FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |what: String| {
            Err(Error::Usage(format!(
                "--override '{text}': {what}; expected REGEX=KEY=VALUE[,KEY=VALUE…] with {ACCEPTED}"
            )))
        };
        let (pattern, parts) = match split(text) {
            Ok(split) => split,
            Err(what) => return fail(what),
        };
        let pattern = match Regex::new(pattern) {
            Ok(pattern) => pattern,
            Err(e) => return fail(format!("'{pattern}' is not a regular expression: {e}")),
        };
        let mut changes = Changes::default();
        for (key, value) in parts {
            if let Err(what) = changes.set(key, value) {
                return fail(what);
            }
        }
        Ok(Override { pattern, changes })
    }
}

type Parts<'a> = Vec<(&'a str, &'a str)>;

/// Splits into the regex and the changes, from the right, because the regex may hold `=` and `,` itself.
fn split(text: &str) -> std::result::Result<(&str, Parts<'_>), String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let start = rest.rfind(',').map_or(0, |comma| comma + 1);
        let segment = &rest[start..];
        let Some((head, value)) = segment.rsplit_once('=') else {
            return Err(format!("'{segment}' is not KEY=VALUE"));
        };
        // Only the leftmost part has the regex before its key, and thus a second '='.
        let (regex_tail, key) = match head.rsplit_once('=') {
            Some((tail, key)) => (Some(tail), key),
            None => (None, head),
        };
        if !KEYS.contains(&key) {
            return Err(format!("'{key}' is not a key"));
        }
        parts.push((key, value));
        match (regex_tail, start) {
            (Some(tail), _) => {
                let regex = &text[..start + tail.len()];
                if regex.is_empty() {
                    return Err("the regex is missing (.* matches every name)".into());
                }
                parts.reverse();
                return Ok((regex, parts));
            }
            (None, 0) => return Err("the regex is missing (.* matches every name)".into()),
            (None, _) => rest = &rest[..start - 1],
        }
    }
}

#[cfg(test)]
mod tests;
