//! Offsets of structure members, from the BTF of the running kernel. Rust has no CO-RE: the kernel half gets
//! these as globals. The format is described in the kernel's Documentation/bpf/btf.rst.

use std::{collections::HashMap, fs, io};

use thiserror::Error;

/// Where the kernel publishes its own types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

#[derive(Debug, Error)]
pub enum BtfError {
    #[error("cannot read {VMLINUX} ({0}): redirect needs a kernel with CONFIG_DEBUG_INFO_BTF")]
    Read(#[from] io::Error),
    #[error("the kernel's BTF cannot be understood: {0}")]
    Malformed(&'static str),
    #[error("the kernel's BTF has no {0}: this version does not know this kernel's structures")]
    Missing(&'static str),
}

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Structures of the kernel by name, with the position of each in the data.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Position of each type, by id - 1.
    types: Vec<usize>,
    structs: HashMap<String, usize>,
}

impl Btf {
    /// The running kernel's.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(VMLINUX)?)
    }

    /// `data`: the raw section, in this machine's byte order.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        let header = |at| word(&data, at).ok_or(BtfError::Malformed("it has no header"));
        if header(0)? & 0xffff != 0xeb9f {
            return Err(BtfError::Malformed("its magic number is wrong"));
        }
        let base = header(4)? as usize;
        let types_start = base + header(8)? as usize;
        let types_end = types_start + header(12)? as usize;
        let strings = base + header(16)? as usize;
        let mut btf = Self {
            data,
            strings,
            types: Vec::new(),
            structs: HashMap::new(),
        };
        let mut at = types_start;
        while at < types_end {
            let (Some(name), Some(info)) = (word(&btf.data, at), word(&btf.data, at + 4)) else {
                return Err(BtfError::Malformed("it ends early"));
            };
            let (kind, entries) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            btf.types.push(at);
            if kind == KIND_STRUCT
                && let Some(name) = btf
                    .string(name)
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned)
            {
                btf.structs.entry(name).or_insert(at);
            }
            at += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => entries * 12,
                    KIND_ENUM | KIND_FUNC_PROTO => entries * 8,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    /// Offset in bytes of `member` of `structure`, also where it sits in an anonymous struct or union.
    pub fn offset(&self, structure: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let at = *self
            .structs
            .get(structure)
            .ok_or(BtfError::Missing(structure))?;
        let bits = self
            .member(at, member, 0)
            .ok_or(BtfError::Missing(member))?;
        Ok(bits / 8)
    }

    fn member(&self, at: usize, wanted: &str, depth: u32) -> Option<u32> {
        let info = word(&self.data, at + 4)?;
        let has_bitfields = info >> 31 == 1;
        for entry in 0..(info & 0xffff) as usize {
            let position = at + 12 + entry * 12;
            let name = self.string(word(&self.data, position)?)?;
            let offset = word(&self.data, position + 8)?;
            let offset = if has_bitfields {
                offset & 0xff_ffff
            } else {
                offset
            };
            if name == wanted {
                return Some(offset);
            }
            if name.is_empty() && depth < 8 {
                let id = word(&self.data, position + 4)? as usize;
                let inner = *self.types.get(id.checked_sub(1)?)?;
                let kind = (word(&self.data, inner + 4)? >> 24) & 0x1f;
                if (kind == KIND_STRUCT || kind == KIND_UNION)
                    && let Some(found) = self.member(inner, wanted, depth + 1)
                {
                    return Some(offset.wrapping_add(found));
                }
            }
        }
        None
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let bytes = self.data.get(self.strings + offset as usize..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        str::from_utf8(bytes.get(..end)?).ok()
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        data.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header(types: u32, strings: u32) -> Vec<u8> {
        [0x0001_eb9f, 24, 0, types, types, strings]
            .iter()
            .flat_map(|w: &u32| w.to_ne_bytes())
            .collect()
    }

    #[test]
    fn garbage_is_refused() {
        assert!(Btf::parse(Vec::new()).is_err());
        assert!(Btf::parse(vec![0; 64]).is_err());
        assert!(
            Btf::parse(header(0xffff, 0)).is_err(),
            "types beyond the end"
        );
        assert!(
            Btf::parse(header(0, 0))
                .unwrap()
                .offset("sock", "x")
                .is_err()
        );
    }

    #[test]
    fn finds_members_through_anonymous_unions() {
        // struct s { int a; union { int b; int c; }; }
        let strings = b"\0int\0s\0a\0b\0c\0";
        let words: &[u32] = &[
            1,
            1 << 24,
            4,
            32, // 1: int
            0,
            (5 << 24) | 2,
            4,
            9,
            1,
            0,
            11,
            1,
            0, // 2: anonymous union { b, c }
            5,
            (4 << 24) | 2,
            8,
            7,
            1,
            0,
            0,
            2,
            32, // 3: struct s { a, union }
        ];
        let mut data = header(words.len() as u32 * 4, strings.len() as u32);
        data.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        data.extend_from_slice(strings);
        let btf = Btf::parse(data).unwrap();
        assert_eq!(btf.offset("s", "a").unwrap(), 0);
        assert_eq!(btf.offset("s", "c").unwrap(), 4);
        assert!(matches!(btf.offset("s", "d"), Err(BtfError::Missing("d"))));
        assert!(matches!(btf.offset("t", "d"), Err(BtfError::Missing("t"))));
    }
}
