//! The names of the kernel's functions, from `/proc/kallsyms` (see `proc(5)`).

use std::fs;
use std::io;

/// Where the list of functions is.
const KALLSYMS: &str = "/proc/kallsyms";

/// How far behind the last function an address may be. Functions are at most this long.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;

/// The functions of the running kernel and of its modules.
pub(super) struct KernelSymbols {
    /// The addresses and names, sorted by address, one for each address.
    functions: Vec<(u64, Box<str>)>,
}

impl KernelSymbols {
    /// Reads the names. `None` if this user may not see the addresses.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(super) fn read() -> io::Result<Option<Self>> {
        Ok(Self::parse(&fs::read_to_string(KALLSYMS)?))
    }

    /// Parses the text of the file. Lines that are no functions are skipped. If the addresses are
    /// hidden, all of them are 0.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut functions: Vec<(u64, Box<str>)> = text.lines().filter_map(function).collect();
        functions.sort_by(|(address, name), (other_address, other_name)| {
            address
                .cmp(other_address)
                .then_with(|| rank(name).cmp(&rank(other_name)))
        });
        functions.dedup_by_key(|(address, _)| *address);
        (functions.len() > 1).then_some(Self { functions })
    }

    /// Returns the function that contains an address, without the suffixes that the compiler adds
    /// to the names of copies and parts of functions, such as ".isra.0".
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        let next = self
            .functions
            .partition_point(|(start, _)| *start <= address);
        let (start, name) = self.functions.get(next.checked_sub(1)?)?;
        (address - start < MAX_FUNCTION_BYTES).then(|| name.split('.').next().unwrap_or(name))
    }

    /// Returns the address of a function.
    pub(super) fn address(&self, name: &str) -> Option<u64> {
        let mut functions = self.functions.iter();
        let found = functions.find(|(_, other)| **other == *name);
        found.map(|(address, _)| *address)
    }
}

/// Parses a line like `ffffffff81b6cc30 T _copy_to_iter`, with `[module]` behind the name or not.
fn function(line: &str) -> Option<(u64, Box<str>)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let is_function = matches!(words.next()?, "T" | "t" | "W" | "w");
    is_function.then_some((address, words.next()?.into()))
}

/// Orders the names of one address: the plainest name is the one that people know.
fn rank(name: &str) -> (usize, usize) {
    let underscores = name.len() - name.trim_start_matches('_').len();
    (underscores, name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let symbols = KernelSymbols::parse(
            "ffffffff81000300 t finish_task_switch.isra.0\n\
             ffffffff81000100 T __memcpy\n\
             ffffffff81000100 T memcpy\n\
             ffffffff81000200 D a_variable\n\
             ffffffffc0000000 t virtnet_poll\t[virtio_net]\n",
        )
        .expect("there are functions");
        let name = |address| symbols.name(address);
        assert_eq!(name(0xffff_ffff_8100_00ff), None);
        assert_eq!(name(0xffff_ffff_8100_0100), Some("memcpy"));
        assert_eq!(name(0xffff_ffff_8100_02ff), Some("memcpy"));
        assert_eq!(name(0xffff_ffff_8100_0301), Some("finish_task_switch"));
        assert_eq!(name(0xffff_ffff_c000_0010), Some("virtnet_poll"));
        assert_eq!(name(0xffff_ffff_ffff_0000), None);
        assert_eq!(symbols.address("memcpy"), Some(0xffff_ffff_8100_0100));
        assert_eq!(symbols.address("a_variable"), None);
    }

    #[test]
    fn hidden_addresses_are_not_used() {
        let hidden = "0000000000000000 T memcpy\n0000000000000000 T tcp_sendmsg\n";
        assert!(KernelSymbols::parse(hidden).is_none());
        assert!(KernelSymbols::parse("").is_none());
    }
}
