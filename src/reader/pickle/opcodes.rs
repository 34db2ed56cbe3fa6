//! The opcodes of pickle protocols 0 to 5.

use super::{Id, Problem, Unpickler, Value};
use std::io::{BufRead, Seek};
use std::num::IntErrorKind::{NegOverflow, PosOverflow};

impl<R: BufRead + Seek> Unpickler<R> {
    /// Runs up to STOP.
    pub(super) fn run(&mut self) -> Result<Id, Problem> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                b'.' => return self.pop(),
                // PROTO, FRAME
                0x80 => {
                    let version = self.byte()?;
                    if version > 5 {
                        return Err(Problem::Other(format!("the pickle has the unknown protocol {version}")));
                    }
                }
                0x95 => self.skip(8)?,
                b'(' => self.mark()?,
                b'0' => {
                    // POP drops a mark, too
                    match self.marks.last() == Some(&self.stack.len()) {
                        true => drop(self.pop_mark()?),
                        false => drop(self.pop()?),
                    }
                }
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let id = self.top()?;
                    self.push_id(id)?;
                }
                b'N' => self.push(Value::None)?,
                0x88 | 0x89 => self.push(Value::Bool)?,
                b'I' | b'L' | b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(opcode)?,
                b'F' => {
                    self.line()?;
                    self.push(Value::Float)?;
                }
                b'G' => {
                    self.skip(8)?;
                    self.push(Value::Float)?;
                }
                b'S' | b'V' | b'T' | b'U' | b'X' | 0x8c | 0x8d => self.string(opcode)?,
                b'B' | b'C' | 0x8e | 0x96 => {
                    let length = self.length(opcode)?;
                    self.skip(length)?;
                    self.push(Value::Bytes)?;
                }
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                // a set is not looked into, and a list will do
                b']' | 0x8f => self.push(Value::List(Vec::new()))?,
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Value::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Value::Dict(Box::default()))?,
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Dict(Box::default()))?;
                    self.set_all(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set([(key, value)].into_iter())?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_all(&items)?;
                }
                b'g' | b'h' | b'j' => {
                    let key = self.memo_key(opcode)?;
                    self.get(key)?;
                }
                b'p' | b'q' | b'r' => {
                    let key = self.memo_key(opcode)?;
                    self.put(key)?;
                }
                0x94 => self.put(self.memo.len() as u32)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push_global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let text = |id| self.arena.text(id).map(str::to_owned);
                    let (Some(module), Some(name)) = (text(module), text(name)) else {
                        return Err("the pickle names a class by something that is no text".into());
                    };
                    self.push_global(&module, &name)?;
                }
                b'R' | 0x81 => self.call()?,
                0x92 => {
                    // NEWOBJ_EX: keyword arguments are of no concern
                    self.pop()?;
                    self.call()?;
                }
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id))?;
                }
                b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let items = self.pop_mark()?;
                    self.push_global(&module, &name)?;
                    self.push(Value::Tuple(items))?;
                    self.call()?;
                }
                b'o' => {
                    let mut items = self.pop_mark()?;
                    if items.is_empty() {
                        return Err("the pickle makes an object of no class".into());
                    }
                    let class = items.remove(0);
                    self.push_id(class)?;
                    self.push(Value::Tuple(items))?;
                    self.call()?;
                }
                other => {
                    return Err(Problem::Other(format!(
                        "the pickle has the opcode 0x{other:02x}, which no checkpoint needs"
                    )));
                }
            }
        }
    }

    fn set_all(&mut self, items: &[Id]) -> Result<(), Problem> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("the pickle sets a key without a value".into());
        }
        self.set(pairs.iter().map(|&[key, value]| (key, value)))
    }

    fn integer(&mut self, opcode: u8) -> Result<(), Problem> {
        let value = match opcode {
            b'J' => i64::from(i32::from_le_bytes(self.bytes()?)),
            b'K' => i64::from(self.byte()?),
            b'M' => i64::from(u16::from_le_bytes(self.bytes()?)),
            b'I' | b'L' => {
                let line = self.line()?;
                if opcode == b'I' && (line == "00" || line == "01") {
                    return self.push(Value::Bool);
                }
                let digits = line.strip_suffix('L').unwrap_or(&line);
                match digits.parse::<i64>() {
                    Ok(n) => n,
                    Err(e) if matches!(e.kind(), PosOverflow | NegOverflow) => {
                        return self.push(Value::Big(Box::default()));
                    }
                    Err(_) => return Err("the pickle has a number that is none".into()),
                }
            }
            _ => {
                let length = match opcode {
                    0x8a => u64::from(self.byte()?),
                    _ => u64::from(u32::from_le_bytes(self.bytes()?)),
                };
                let bytes = self.long(length)?;
                if bytes.len() > 8 {
                    return self.push(Value::Big(bytes.into()));
                }
                let fill = if bytes.last().is_some_and(|&b| b >= 0x80) { 0xff } else { 0 };
                let mut wide = [fill; 8];
                wide[..bytes.len()].copy_from_slice(&bytes);
                i64::from_le_bytes(wide)
            }
        };
        self.push(Value::Int(value))
    }

    fn string(&mut self, opcode: u8) -> Result<(), Problem> {
        let text = match opcode {
            // the quotes and escapes of protocol 0 are left as they are: torch writes protocol 2
            b'S' | b'V' => self.line()?.trim_matches(['\'', '"']).to_owned(),
            _ => {
                let length = self.length(opcode)?;
                let bytes = self.long(length)?;
                match String::from_utf8(bytes) {
                    Ok(text) => text,
                    // strings of Python 2 are bytes
                    Err(e) if matches!(opcode, b'T' | b'U') => {
                        e.as_bytes().iter().map(|&b| char::from(b)).collect()
                    }
                    Err(_) => return Err("the pickle has text that is not UTF-8".into()),
                }
            }
        };
        self.push(Value::Text(text.into()))
    }

    /// The length in front of a string or of bytes.
    fn length(&mut self, opcode: u8) -> Result<u64, Problem> {
        Ok(match opcode {
            b'U' | b'C' | 0x8c => u64::from(self.byte()?),
            b'T' | b'X' | b'B' => u64::from(u32::from_le_bytes(self.bytes()?)),
            _ => u64::from_le_bytes(self.bytes()?),
        })
    }

    fn memo_key(&mut self, opcode: u8) -> Result<u32, Problem> {
        match opcode {
            b'g' | b'p' => {
                let key = self.line()?.parse();
                key.map_err(|_| "the pickle remembers a value under what is no number".into())
            }
            b'h' | b'q' => Ok(u32::from(self.byte()?)),
            _ => Ok(u32::from_le_bytes(self.bytes()?)),
        }
    }
}
