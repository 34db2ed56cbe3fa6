//! Pickles, read and never run: a tree of values in which calls stay unevaluated.
//!
//! Only names that a checkpoint needs ([`globals`]) may occur. Memory is bounded whatever the pickle claims.

use std::collections::HashMap;
use std::io::{BufRead, Read, Seek};

mod globals;
mod opcodes;

/// Number of a value in an [`Arena`].
pub(super) type Id = u32;

/// Memory that the values of one pickle may take. A tensor of a state dict takes about 700 bytes.
const BUDGET: usize = 512 << 20;
/// Values that may wait on the stack.
const DEEPEST: usize = 1 << 23;
/// Longest name or number in decimal digits.
const LONGEST_LINE: u64 = 4096;
/// Longest name of a class, with its module.
const LONGEST_CLASS: usize = 1024;

/// What a pickle holds. Containers refer to other values, and a hostile pickle may let them refer in circles.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    /// An integer beyond 64 bits, as little-endian two's complement.
    Big(Box<[u8]>),
    Float,
    Text(Box<str>),
    /// Bytes, of which only the number counts.
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// `dict` and `OrderedDict`, and the attributes set on it.
    Dict(Box<Dict>),
    /// `module.name` of a class or function.
    Global(Box<str>),
    /// A call or a new object, with the state set on it.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// What a persistent id stands for.
    Persistent(Id),
}

#[derive(Debug, Clone, Default)]
pub(super) struct Dict {
    pub items: Vec<(Id, Id)>,
    pub attributes: Option<Id>,
}

/// The values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Arena {
    values: Vec<Value>,
    spent: usize,
}

/// Why a pickle is not read.
#[derive(Debug)]
pub(super) enum Problem {
    Io(std::io::Error),
    /// A class or function that no state dict needs.
    Global(String),
    Other(String),
}

impl From<std::io::Error> for Problem {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Problem::Other("the pickle is cut off".into()),
            _ => Problem::Io(e),
        }
    }
}

impl From<&str> for Problem {
    fn from(what: &str) -> Self {
        Problem::Other(what.into())
    }
}

impl Arena {
    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    pub fn global(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    /// The items of a tuple or list, or of the `torch.Size` made from one.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            Value::Call { function, arguments, .. } if self.global(*function) == Some("torch.Size") => {
                match self.get(*arguments) {
                    Value::Tuple(arguments) if arguments.len() == 1 => match self.get(arguments[0]) {
                        Value::Tuple(items) | Value::List(items) => Some(items),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }

    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(dict) => Some(&dict.items),
            _ => None,
        }
    }

    /// What persistent ids stand for.
    pub fn persistent(&self) -> impl Iterator<Item = Id> {
        let inner = |value: &Value| if let Value::Persistent(id) = value { Some(*id) } else { None };
        self.values.iter().filter_map(inner)
    }

    /// What a value is, in a word or two.
    pub fn kind(&self, id: Id) -> String {
        match self.get(id) {
            Value::None => "None".into(),
            Value::Bool => "bool".into(),
            Value::Int(_) | Value::Big(_) => "whole number".into(),
            Value::Float => "float".into(),
            Value::Text(_) => "str".into(),
            Value::Bytes => "bytes".into(),
            Value::Tuple(_) => "tuple".into(),
            Value::List(_) => "list".into(),
            Value::Dict(_) => "dict".into(),
            Value::Global(name) => format!("the class or function {name}"),
            Value::Call { function, .. } => self.global(*function).unwrap_or("object").into(),
            Value::Persistent(_) => "storage".into(),
        }
    }

    fn add(&mut self, value: Value) -> Result<Id, Problem> {
        let held = match &value {
            Value::Big(bytes) => bytes.len(),
            Value::Text(text) | Value::Global(text) => text.len(),
            Value::Dict(_) => 48,
            Value::Tuple(items) | Value::List(items) => items.len() * size_of::<Id>(),
            _ => 0,
        };
        self.spend(size_of::<Value>() + held)?;
        self.values.push(value);
        Ok(self.values.len() as Id - 1)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Problem> {
        self.spent = self.spent.saturating_add(bytes);
        match self.spent > BUDGET {
            true => Err(Problem::Other(format!(
                "the pickle holds values of more than {} MiB beside the tensors' data",
                BUDGET >> 20
            ))),
            false => Ok(()),
        }
    }
}

/// What is being read.
struct Unpickler<R> {
    input: R,
    arena: Arena,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Whether classes of TorchScript may occur.
    script: bool,
}

/// Reads one pickle up to its end, and returns its values and the one that it stands for.
pub(super) fn read(input: impl BufRead + Seek, script: bool) -> Result<(Arena, Id), Problem> {
    let mut unpickler = Unpickler {
        input,
        arena: Arena::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        script,
    };
    let root = unpickler.run()?;
    Ok((unpickler.arena, root))
}

impl<R: BufRead + Seek> Unpickler<R> {
    fn byte(&mut self) -> Result<u8, Problem> {
        Ok(self.bytes::<1>()?[0])
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// `length` bytes, read as far as they are there before memory is taken for them.
    fn long(&mut self, length: u64) -> Result<Vec<u8>, Problem> {
        if length > (BUDGET - self.arena.spent.min(BUDGET)) as u64 {
            return Err(Problem::Other(format!("the pickle holds a string that claims {length} bytes")));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(length).read_to_end(&mut bytes)?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err("the pickle is cut off".into()),
        }
    }

    /// Passes over `length` bytes, which are not read.
    fn skip(&mut self, length: u64) -> Result<(), Problem> {
        let length = i64::try_from(length).map_err(|_| Problem::from("the pickle is cut off"))?;
        Ok(self.input.seek_relative(length)?)
    }

    fn line(&mut self) -> Result<String, Problem> {
        let mut line = Vec::new();
        (&mut self.input).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            let longest = line.len() as u64 + 1 >= LONGEST_LINE;
            return Err(
                if longest { "the pickle has a line without end" } else { "the pickle is cut off" }.into()
            );
        }
        String::from_utf8(line).map_err(|_| "the pickle has a line that is not UTF-8".into())
    }

    fn push(&mut self, value: Value) -> Result<(), Problem> {
        let id = self.arena.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Problem> {
        // DUP and GET take a byte or two of the pickle and a place here
        if self.stack.len() >= DEEPEST {
            return Err("the pickle's stack is too deep".into());
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(underflow),
            false => Err(underflow()),
        }
    }

    fn top(&self) -> Result<Id, Problem> {
        self.stack.last().copied().ok_or_else(underflow)
    }

    fn mark(&mut self) -> Result<(), Problem> {
        if self.marks.len() >= DEEPEST {
            return Err("the pickle's stack is too deep".into());
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let floor = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(floor.min(self.stack.len())))
    }

    fn tuple(&mut self, length: usize) -> Result<(), Problem> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn set(&mut self, pairs: impl ExactSizeIterator<Item = (Id, Id)>) -> Result<(), Problem> {
        let target = self.top()?;
        self.arena.spend(pairs.len() * size_of::<(Id, Id)>())?;
        match self.arena.values.get_mut(target as usize) {
            Some(Value::Dict(dict)) => dict.items.extend(pairs),
            // items of an object that is not looked into (Counter, defaultdict)
            Some(Value::Call { .. }) => {}
            _ => return Err("the pickle sets items of something that has none".into()),
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Problem> {
        let target = self.top()?;
        self.arena.spend(items.len() * size_of::<Id>())?;
        match self.arena.values.get_mut(target as usize) {
            Some(Value::List(list)) => list.extend(items),
            Some(Value::Call { .. }) => {}
            _ => return Err("the pickle appends to something that is no list".into()),
        }
        Ok(())
    }

    fn get(&mut self, key: u32) -> Result<(), Problem> {
        let id = self.memo.get(&key).copied();
        self.push_id(id.ok_or_else(|| {
            Problem::Other(format!("the pickle refers to value {key}, which it has not made"))
        })?)
    }

    fn put(&mut self, key: u32) -> Result<(), Problem> {
        let id = self.top()?;
        self.arena.spend(16)?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), Problem> {
        if module.len() + name.len() > LONGEST_CLASS {
            let length = module.len() + name.len();
            return Err(Problem::Other(format!("the pickle names a class by {length} bytes")));
        }
        let name = globals::canonical(module, name);
        match globals::allowed(&name) || self.script && globals::of_script(&name) {
            true => self.push(Value::Global(name.into())),
            false => Err(Problem::Global(name)),
        }
    }

    /// A call, not made: a dict is what its calls would make, all else stays a call.
    fn call(&mut self) -> Result<(), Problem> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some(name) = self.arena.global(function) else {
            return Err("the pickle calls something that is no function".into());
        };
        if name == "collections.OrderedDict" || name == "builtins.dict" {
            let mut pairs = Vec::new();
            if let Some([initial]) = self.arena.items(arguments) {
                match self.arena.get(*initial) {
                    Value::Dict(dict) => pairs.clone_from(&dict.items),
                    _ => {
                        for &pair in self.arena.items(*initial).unwrap_or_default() {
                            match self.arena.items(pair) {
                                Some(&[key, value]) => pairs.push((key, value)),
                                _ => return Err("the pickle makes a dict of what are no pairs".into()),
                            }
                        }
                    }
                }
            }
            self.arena.spend(pairs.len() * size_of::<(Id, Id)>())?;
            return self.push(Value::Dict(Box::new(Dict { items: pairs, attributes: None })));
        }
        if name == "_codecs.encode" {
            return self.push(Value::Bytes);
        }
        self.push(Value::Call { function, arguments, state: None })
    }

    /// Sets the state of an object.
    fn build(&mut self) -> Result<(), Problem> {
        let value = self.pop()?;
        let target = self.top()?;
        match self.arena.values.get_mut(target as usize) {
            Some(Value::Dict(dict)) => dict.attributes = Some(value),
            Some(Value::Call { state, .. }) => *state = Some(value),
            _ => return Err("the pickle sets the state of something that has none".into()),
        }
        Ok(())
    }
}

fn underflow() -> Problem {
    "the pickle takes more values than it has made".into()
}
