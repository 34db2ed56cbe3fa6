//! Finds the weights in what was pickled: a state dict, nested or not, or the modules of TorchScript.

use super::super::pickle::{Arena, Id, Value};
use super::tensors::{Described, describe};
use crate::reader::{SHOWN, enumerate_some};
use std::collections::HashMap;

/// Keys under which training scripts keep the weights; of several, the first.
const USUAL: [&str; 11] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params_ema",
    "params",
    "weights",
    "checkpoint",
];
/// Dicts in dicts.
const DEEPEST: usize = 16;
/// Values that are looked at, and bytes of what is kept of them: parts that are shared many times multiply.
const MOST: usize = 2_000_000;
const BUDGET: usize = 256 << 20;

/// The weights of a file.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub tensors: Vec<(String, Described)>,
    /// String attributes of the state dict.
    pub attributes: Vec<(String, String)>,
    /// What was taken, and what was left where it is.
    pub notes: Vec<String>,
}

/// Looks for tensors by name.
pub(super) fn find(arena: &Arena, root: Id, script: bool) -> Result<Found, String> {
    let mut found = Found::default();
    let mut walk = Walk {
        arena,
        script,
        found: &mut found,
        known: HashMap::new(),
        visits: 0,
        spent: 0,
        path: Vec::new(),
        others: Others::default(),
    };
    let mut here = root;
    if !script {
        let mut keys: Vec<&str> = Vec::new();
        while let Some((key, inner)) = walk.nested(here) {
            if keys.len() >= DEEPEST {
                return Err("holds dicts in dicts without end".into());
            }
            let beside =
                arena.dict(here).unwrap_or_default().iter().filter(|(k, _)| arena.text(*k) != Some(key));
            beside.for_each(|&(k, v)| walk.others.add(|| (label(arena, k), arena.kind(v))));
            keys.push(key);
            here = inner;
        }
        if !keys.is_empty() {
            walk.found.notes.push(format!("the weights are those under `{}`", keys.join("` `")));
        }
        if arena.dict(here).is_none() {
            return Err(no_state_dict(arena, here));
        }
    }
    walk.visit(here, "")?;
    let others = std::mem::take(&mut walk.others);
    if others.count > 0 {
        let others = enumerate_some(&others.shown, others.count);
        found.notes.push(format!("beside the weights, and left out: {others}"));
    }
    if found.tensors.is_empty() {
        return Err(format!("holds a {} without tensors", arena.kind(root)));
    }
    if let Value::Dict(dict) = arena.get(here)
        && let Some(pairs) = dict.attributes.and_then(|attributes| arena.dict(attributes))
    {
        let text = |&(k, v): &(Id, Id)| Some((arena.text(k)?.to_owned(), arena.text(v)?.to_owned()));
        found.attributes = pairs.iter().filter_map(text).collect();
    }
    Ok(found)
}

fn no_state_dict(arena: &Arena, id: Id) -> String {
    let kind = if describe(arena, id).is_some() { "single tensor".to_owned() } else { arena.kind(id) };
    format!(
        "holds a {kind}; accepted: a dict of names and tensors, as torch.save(model.state_dict(), …) writes"
    )
}

fn label(arena: &Arena, key: Id) -> String {
    match arena.get(key) {
        Value::Text(text) => brief(text),
        Value::Int(n) => n.to_string(),
        _ => arena.kind(key),
    }
}

/// The beginning of a name, where the whole may be of any length.
fn brief(name: &str) -> String {
    const LONGEST: usize = 100;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// What lies beside the weights: the first few, and how many there are.
#[derive(Default)]
struct Others {
    shown: Vec<String>,
    count: usize,
}

impl Others {
    /// Counts one; its name and kind are only made out if they are shown.
    fn add(&mut self, what: impl FnOnce() -> (String, String)) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            let (name, kind) = what();
            self.shown.push(format!("{name} ({kind})"));
        }
    }
}

struct Walk<'a> {
    arena: &'a Arena,
    script: bool,
    found: &'a mut Found,
    /// Whether a dict, looked into from a depth, has tensors.
    known: HashMap<(Id, usize), bool>,
    visits: usize,
    spent: usize,
    /// What is being visited, from the outermost in.
    path: Vec<Id>,
    others: Others,
}

impl<'a> Walk<'a> {
    /// The dict that holds the weights of this one: under a usual key, or the only one with tensors.
    fn nested(&mut self, dict: Id) -> Option<(&'a str, Id)> {
        let pairs = self.arena.dict(dict)?;
        let text = |&(k, v): &(Id, Id)| Some((self.arena.text(k)?, v));
        let named: Vec<(&str, Id)> = pairs.iter().filter_map(text).collect();
        for usual in USUAL {
            if let Some(&found) = named.iter().find(|(k, _)| *k == usual)
                && self.has_tensors(found.1, 0)
            {
                return Some(found);
            }
        }
        if named.iter().any(|(_, v)| describe(self.arena, *v).is_some()) {
            return None;
        }
        let mut holders = named.into_iter().filter(|(_, v)| self.has_tensors(*v, 0));
        holders.next().filter(|_| holders.next().is_none())
    }

    /// Whether a dict holds a tensor, or a dict that does.
    fn has_tensors(&mut self, id: Id, depth: usize) -> bool {
        let arena = self.arena;
        let Some(pairs) = arena.dict(id).filter(|_| depth < 4 && self.visits <= MOST) else { return false };
        if let Some(&known) = self.known.get(&(id, depth)) {
            return known;
        }
        let named = || pairs.iter().filter(|(k, _)| arena.text(*k).is_some());
        let found = named().any(|&(_, v)| describe(arena, v).is_some())
            || named().any(|&(_, v)| self.has_tensors(v, depth + 1));
        self.known.insert((id, depth), found);
        found
    }

    fn visit(&mut self, id: Id, prefix: &str) -> Result<(), String> {
        // In pickles of TorchScript a module is an object whose state is a dict.
        let state = match self.arena.get(id) {
            Value::Call { state: Some(state), .. } if self.script => *state,
            _ => id,
        };
        let Some(pairs) = self.arena.dict(state) else { return Ok(()) };
        if self.path.contains(&id) || self.path.len() > 16 * DEEPEST {
            return Err("holds dicts that contain themselves".into());
        }
        self.path.push(id);
        for &(key, value) in pairs {
            self.visits += 1;
            if self.visits > MOST || self.spent > BUDGET {
                return Err(format!(
                    "names more than {MOST} values, or by names of more than {} MiB",
                    BUDGET >> 20
                ));
            }
            let name = match (self.arena.text(key), prefix) {
                (Some(key), "") => key.to_owned(),
                (Some(key), prefix) => format!("{prefix}.{key}"),
                (None, _) => {
                    self.others.add(|| (label(self.arena, key), self.arena.kind(value)));
                    continue;
                }
            };
            self.spent += name.len();
            match describe(self.arena, value) {
                Some(Ok(tensor)) => {
                    self.spent +=
                        size_of::<(String, Described)>() + 16 * tensor.shape.len() + tensor.storage.len();
                    self.found.tensors.push((name, tensor));
                }
                Some(Err(what)) => return Err(format!("tensor `{name}` {what}")),
                None if self.script => self.visit(value, &name)?,
                None if self.has_tensors(value, 0) => self.visit(value, &name)?,
                None => self.others.add(|| (brief(&name), self.arena.kind(value))),
            }
        }
        self.path.pop();
        Ok(())
    }
}
