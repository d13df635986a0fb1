//! The layout of the kernel's structures, from the description that it has of its own types (BTF,
//! see `Documentation/bpf/btf.rst`).

/// Where the kernel keeps the description.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC`, in the byte order of this machine.
const MAGIC: u16 = 0xeb9f;

/// The size of what each type begins with.
const TYPE_BYTES: usize = 12;

/// The size of the description of a field.
const FIELD_BYTES: usize = 12;

/// How deep structures without names, and names of types, may be nested.
const MAX_DEPTH: u32 = 16;

/// `BTF_KIND_…`: the kinds of types that lead to a structure.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;

/// The types of a kernel.
pub(super) struct Types<'a> {
    /// Where each type begins. Type 0 is `void`, which is not in the description.
    starts: Vec<usize>,
    types: &'a [u8],
    names: &'a [u8],
}

/// A structure.
pub(super) struct Structure<'a> {
    types: &'a Types<'a>,
    start: usize,
}

/// What a type begins with.
struct Head {
    name: usize,
    kind: u32,
    /// The number of fields, or of what else it consists of.
    length: usize,
    /// Whether an offset of a field has the size of a bit field above its 24 bits.
    has_bit_fields: bool,
    /// The type that it is another name for.
    other: usize,
}

impl<'a> Types<'a> {
    /// Finds where the types are. `None` if the description is damaged, or has a kind of type that
    /// is not known here.
    pub(super) fn parse(description: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(description.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let field = |number: usize| word(description, number * 4);
        let body = description.get(field(1)?..)?;
        let part = |start: usize, length: usize| body.get(start..start.checked_add(length)?);
        let mut types = Self {
            starts: vec![0],
            types: part(field(2)?, field(3)?)?,
            names: part(field(4)?, field(5)?)?,
        };
        let mut start = 0;
        while start < types.types.len() {
            types.starts.push(start);
            let head = types.head_at(start)?;
            start += TYPE_BYTES + details_bytes(head.kind, head.length)?;
        }
        Some(types)
    }

    /// Finds a structure by its name.
    pub(super) fn structure(&self, name: &str) -> Option<Structure<'_>> {
        let mut starts = self.starts.iter().skip(1).copied();
        let start = starts.find(|start| {
            self.head_at(*start).is_some_and(|head| {
                head.kind == STRUCT && self.name(head.name) == Some(name.as_bytes())
            })
        })?;
        Some(Structure { types: self, start })
    }

    /// The offset of a field of the type at `start`, in bits.
    fn offset_in(&self, start: usize, field: &str, depth: u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        let head = self.head_at(start)?;
        match head.kind {
            STRUCT | UNION => {}
            TYPEDEF | VOLATILE | CONST => {
                let start = *self.starts.get(head.other)?;
                return self.offset_in(start, field, depth);
            }
            _ => return None,
        }
        (0..head.length).find_map(|number| {
            let at = start + TYPE_BYTES + number * FIELD_BYTES;
            let name = self.name(word(self.types, at)?)?;
            let mut offset = u32::try_from(word(self.types, at + 8)?).ok()?;
            if head.has_bit_fields {
                offset &= (1 << 24) - 1;
            }
            if name == field.as_bytes() {
                return Some(offset);
            }
            let nested = *self.starts.get(word(self.types, at + 4)?)?;
            let within = match name {
                [] => self.offset_in(nested, field, depth),
                _ => None,
            };
            offset.checked_add(within?)
        })
    }

    fn head_at(&self, start: usize) -> Option<Head> {
        let info = u32::try_from(word(self.types, start + 4)?).ok()?;
        Some(Head {
            name: word(self.types, start)?,
            kind: (info >> 24) & 0x1f,
            length: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            other: word(self.types, start + 8)?,
        })
    }

    fn name(&self, start: usize) -> Option<&[u8]> {
        self.names.get(start..)?.split(|byte| *byte == 0).next()
    }
}

impl Structure<'_> {
    /// Returns the offset of a field, in bytes. The field may be in a structure without a name.
    pub(super) fn offset(&self, field: &str) -> Option<u32> {
        let bits = self.types.offset_in(self.start, field, MAX_DEPTH)?;
        (bits % 8 == 0).then_some(bits / 8)
    }
}

/// The size of what follows the head of a type: `linux/btf.h`.
fn details_bytes(kind: u32, length: usize) -> Option<usize> {
    match kind {
        // Pointers, forward declarations, other names, qualifiers, functions, floats, tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => Some(4),
        // Arrays.
        3 => Some(12),
        // Enumerations, prototypes.
        6 | 13 => Some(length * 8),
        // Structures, unions, sections, enumerations of 64 bits.
        STRUCT | UNION | 15 | 19 => Some(length * FIELD_BYTES),
        _ => None,
    }
}

/// Returns a number of 4 bytes.
fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let end = at.checked_add(4)?;
    let word = u32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?);
    usize::try_from(word).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure `s` of `int a`, an anonymous structure of `int b` and `int c`, and `d`, a
    /// structure that has a name and a field `e`.
    fn description() -> Vec<u8> {
        let names = b"\0s\0a\0b\0c\0d\0e\0int\0";
        let head = |name: u32, kind: u32, length: u32, other: u32| {
            vec![name, (kind << 24) | length, other]
        };
        let types = [
            head(13, 1, 0, 4),
            vec![32],
            head(0, STRUCT, 2, 8),
            vec![5, 1, 0, 7, 1, 32],
            head(0, CONST, 0, 2),
            head(0, STRUCT, 1, 4),
            vec![11, 1, 0],
            head(1, STRUCT | 0x80, 3, 16),
            vec![3, 1, 0, 0, 3, 32, 9, 4, 96],
        ]
        .concat();
        let length = u32::try_from(types.len() * 4).expect("it is short");
        let names_length = u32::try_from(names.len()).expect("it is short");
        let mut description = MAGIC.to_ne_bytes().to_vec();
        description.extend([1, 0]);
        for number in [24, 0, length, length, names_length] {
            description.extend(number.to_ne_bytes());
        }
        description.extend(types.into_iter().flat_map(u32::to_ne_bytes));
        description.extend(names);
        description
    }

    #[test]
    fn fields_are_found_in_structures_without_names() {
        let description = description();
        let types = Types::parse(&description).expect("it is complete");
        for (field, offset) in [
            ("a", Some(0)),
            ("b", Some(4)),
            ("c", Some(8)),
            ("d", Some(12)),
            ("e", None),
            ("f", None),
        ] {
            let structure = types.structure("s").expect("it is there");
            assert_eq!(structure.offset(field), offset, "{field}");
        }
        assert!(types.structure("t").is_none());
        // A name of something else.
        assert!(types.structure("int").is_none());
    }

    #[test]
    fn damaged_descriptions_have_no_fields() {
        let whole = description();
        for length in 0..whole.len() {
            let types = Types::parse(&whole[..length]);
            assert!(types.is_none(), "{length} bytes");
        }
        for (at, byte) in [(0, 0), (4, 0xff), (12, 0xff), (24 + 7, 0x1f)] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            assert!(Types::parse(&damaged).is_none(), "byte {at}");
        }
        // A structure that contains itself.
        let mut endless = whole.clone();
        let field = 24 + 7 * 4 + 3 * 4;
        endless[field - 12..field - 8].copy_from_slice(&0_u32.to_ne_bytes());
        endless[field - 8..field - 4].copy_from_slice(&2_u32.to_ne_bytes());
        let types = Types::parse(&endless).expect("its parts are complete");
        let structure = types.structure("s").expect("it is there");
        assert_eq!(structure.offset("z"), None);
    }

    #[test]
    fn this_kernel_has_a_description_that_can_be_parsed() {
        // Kernels without it are allowed.
        if let Ok(description) = std::fs::read(PATH) {
            let types = Types::parse(&description).expect("it is complete");
            let list = types.structure("list_head").expect("each kernel has it");
            assert_eq!(list.offset("next"), Some(0));
            assert_eq!(list.offset("prev"), Some(8));
        }
    }
}
