//! What `uncopied audit` needs of `bpf(2)`: maps, and programs that kernel probes run.
//!
//! Only for `uncopied-cli`, which has no unsafe code. Maps and programs are descriptors: nothing is
//! left of them when the process ends, however it ends.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};

use super::last_errno;

/// Commands of `linux/bpf.h`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `BPF_PROG_TYPE_KPROBE`.
const PROGRAM_OF_PROBE: u32 = 2;

/// The licence that a program states. The kernel lets only programs under a licence that is
/// compatible with the GPL, such as MIT, read its memory.
const LICENCE: &[u8] = b"Dual MIT/GPL\0";

/// The instruction that calls a function of the kernel, and the functions that programs may call
/// (`bpf-helpers(7)`): those for entries of maps, for the current thread, and for reading the
/// kernel's memory. Others can write to the memory of processes, which would make loading a program
/// unsafe (`bpf_probe_write_user`).
const CALL: u8 = 0x85;
const CALLABLE: [i32; 6] = [1, 2, 3, 14, 35, 113];

/// The size of the text in which the kernel says why it refuses a program.
const LOG_BYTES: usize = 64 << 10;

/// The kinds of maps.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub enum BpfMapKind {
    /// Refuses entries beyond its size (`BPF_MAP_TYPE_HASH`).
    Hash = 1,
    /// Forgets old entries in favour of new ones (`BPF_MAP_TYPE_LRU_HASH`).
    LruHash = 9,
}

/// A map whose keys are words of 8 bytes, and whose values consist of `WORDS` such words.
#[doc(hidden)]
#[derive(Debug)]
pub struct BpfMap<const WORDS: usize> {
    descriptor: OwnedFd,
}

/// A program that was loaded into the kernel, and can be attached to a probe.
#[doc(hidden)]
#[derive(Debug)]
pub struct BpfProgram {
    descriptor: OwnedFd,
}

/// `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// `union bpf_attr` for the commands about an entry of a map.
#[repr(C)]
struct EntryAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    /// The value, or where the next key goes.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct ProgramAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The words of `struct bpf_prog_info` up to `recursion_misses`, which is the last of them.
type ProgramInfo = [u64; 27];

/// Calls `bpf(2)`.
///
/// # Safety
///
/// `A` is what the command takes as its attributes, without padding that is not initialised, and
/// each address in it points to as many bytes as the command reads or writes there.
unsafe fn bpf<A>(command: libc::c_long, mut attributes: A) -> io::Result<RawFd> {
    let attributes = &raw mut attributes;
    // SAFETY: the kernel reads and writes at most `size_of::<A>()` bytes of the attributes, which
    // are a local, and follows the addresses in them as the caller has promised.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(last_errno().into()),
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as usize as u64
}

fn address_mut<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value) as usize as u64
}

impl<const WORDS: usize> BpfMap<WORDS> {
    /// Creates a map.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`: `EPERM` without `CAP_BPF`, `ENOSYS` if the kernel has no BPF.
    pub fn new(kind: BpfMapKind, max_entries: u32) -> io::Result<Self> {
        let attributes = MapAttributes {
            map_type: kind as u32,
            key_size: size_of::<u64>() as u32,
            value_size: size_of::<[u64; WORDS]>() as u32,
            max_entries,
            map_flags: 0,
        };
        // SAFETY: the attributes are those of the command, five integers, and have no addresses.
        let descriptor = unsafe { bpf(BPF_MAP_CREATE, attributes) }?;
        // SAFETY: the command returns a new descriptor.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    fn entry(&self, key: u64, value: u64) -> EntryAttributes {
        EntryAttributes {
            map_fd: self.as_raw_fd().cast_unsigned(),
            padding: 0,
            key,
            value,
            flags: 0,
        }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`: `E2BIG` if the map is full.
    pub fn insert(&self, key: u64, value: [u64; WORDS]) -> io::Result<()> {
        let attributes = self.entry(address(&key), address(&value));
        // SAFETY: the attributes are those of the command, and all bits of them are initialised.
        // The kernel reads the key and the value, whose sizes are those that the map was created
        // with. Both outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, attributes) }.map(drop)
    }

    /// Returns all entries, in no order. Entries that programs add meanwhile may be missing.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`.
    pub fn entries(&self) -> io::Result<Vec<(u64, [u64; WORDS])>> {
        let mut entries = Vec::new();
        let mut last: Option<u64> = None;
        loop {
            let mut key = 0_u64;
            let of_last = last.as_ref().map_or(0, address);
            let attributes = self.entry(of_last, address_mut(&mut key));
            // SAFETY: as in `insert`, except that the kernel writes the next key. Without a last
            // key, whose address is then 0, that is the first one.
            match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, attributes) } {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => return Ok(entries),
                Err(error) => return Err(error),
            }
            let mut value = [0_u64; WORDS];
            let attributes = self.entry(address(&key), address_mut(&mut value));
            // SAFETY: as in `insert`, except that the kernel writes the value, whose size is that
            // of the map.
            match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, attributes) } {
                Ok(_) => entries.push((key, value)),
                // A program has removed it meanwhile.
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
            last = Some(key);
        }
    }
}

fn is_not_found(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

impl<const WORDS: usize> AsRawFd for BpfMap<WORDS> {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl BpfProgram {
    /// Loads a program for a kernel probe. The kernel verifies that it ends, and that it accesses
    /// no memory except its stack, its maps, and the registers.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`: `EPERM` without `CAP_BPF` and `CAP_PERFMON`. If the kernel finds a
    /// mistake in the program, the error has the end of its explanation. `EPERM` as well if the
    /// program calls a function that is not known to leave the memory of processes alone.
    pub fn load(instructions: &[u64]) -> io::Result<Self> {
        if !instructions.iter().all(|one| is_harmless(*one)) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        match Self::load_with(instructions, &mut []) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => {
                let mut log = vec![0; LOG_BYTES];
                // It fails in the same way.
                Self::load_with(instructions, &mut log).map_err(|error| explained(&error, &log))
            }
            outcome => outcome,
        }
    }

    /// How often the kernel has not run the program, because it interrupted another one on the same
    /// CPU. Linux counts this for probes since 6.7.
    ///
    /// # Errors
    ///
    /// The errno of `bpf(2)`.
    pub fn missed(&self) -> io::Result<u64> {
        let mut info: ProgramInfo = [0; 27];
        let attributes = InfoAttributes {
            bpf_fd: self.as_raw_fd().cast_unsigned(),
            info_len: size_of::<ProgramInfo>() as u32,
            info: address_mut(&mut info),
        };
        // SAFETY: the attributes are those of the command, without padding. The kernel writes at
        // most `info_len` bytes to the local, and follows none of the addresses in it, because the
        // lengths that belong to them are 0.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, attributes) }?;
        let [.., missed] = info;
        Ok(missed)
    }

    fn load_with(instructions: &[u64], log: &mut [u8]) -> io::Result<Self> {
        let is_wanted = !log.is_empty();
        let attributes = ProgramAttributes {
            prog_type: PROGRAM_OF_PROBE,
            insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            insns: instructions.as_ptr() as usize as u64,
            license: LICENCE.as_ptr() as usize as u64,
            log_level: u32::from(is_wanted),
            log_size: u32::try_from(log.len()).map_err(io::Error::other)?,
            log_buf: if is_wanted {
                log.as_mut_ptr() as usize as u64
            } else {
                0
            },
        };
        // SAFETY: the attributes are those of the command, and have no padding. The kernel reads
        // the instructions, of 8 bytes each, and the licence up to its NUL, and writes at most
        // `log_size` bytes to the log. All of them outlive the call. What the program does is
        // verified by the kernel.
        let descriptor = unsafe { bpf(BPF_PROG_LOAD, attributes) }?;
        // SAFETY: the command returns a new descriptor.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }
}

/// Whether an instruction is no call, or calls one of the functions that programs may call.
fn is_harmless(instruction: u64) -> bool {
    let [operation, registers, _, _, number @ ..] = instruction.to_ne_bytes();
    let number = i32::from_ne_bytes(number);
    operation != CALL || (registers == 0 && CALLABLE.contains(&number))
}

/// Adds the last lines of the kernel's explanation to an error.
fn explained(error: &io::Error, log: &[u8]) -> io::Error {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.get(lines.len().saturating_sub(3)..).unwrap_or(&[]);
    io::Error::new(error.kind(), format!("{error}: {}", end.join("; ")))
}

impl AsRawFd for BpfProgram {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_layout_of_the_kernel() {
        assert_eq!(size_of::<MapAttributes>(), 20);
        assert_eq!(size_of::<EntryAttributes>(), 32);
        assert_eq!(std::mem::offset_of!(EntryAttributes, key), 8);
        assert_eq!(size_of::<ProgramAttributes>(), 40);
        assert_eq!(std::mem::offset_of!(ProgramAttributes, log_buf), 32);
        assert_eq!(size_of::<InfoAttributes>(), 16);
    }

    #[test]
    fn programs_that_can_write_to_processes_are_refused() {
        let call =
            |registers, number: u8| u64::from_ne_bytes([CALL, registers, 0, 0, number, 0, 0, 0]);
        assert!(is_harmless(call(0, 113)));
        // `bpf_probe_write_user`, and a function of the kernel that is not in the list of helpers.
        for instruction in [call(0, 36), call(2 << 4, 1)] {
            let error = BpfProgram::load(&[instruction]).expect_err("it is refused");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn the_explanation_of_a_refusal_is_its_end() {
        let mut log = b"0: one\n1: two\n2: three\nprocessed 3 insns\n".to_vec();
        log.extend([0; 8]);
        let error = explained(&io::Error::from_raw_os_error(libc::EACCES), &log);
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let text = error.to_string();
        assert!(
            text.ends_with("1: two; 2: three; processed 3 insns"),
            "{text}"
        );
    }

    /// Where BPF is allowed: what was inserted is there, and a wrong program is refused with words.
    #[test]
    fn maps_keep_entries_and_wrong_programs_are_explained() {
        let map = match BpfMap::<2>::new(BpfMapKind::Hash, 4) {
            Ok(map) => map,
            // An ordinary user, a container, or a kernel without BPF.
            Err(error) => {
                let errno = error.raw_os_error();
                assert!(matches!(errno, Some(libc::EPERM | libc::ENOSYS)), "{error}");
                println!("LEFT OUT maps and programs of BPF: {error}");
                return;
            }
        };
        assert!(map.entries().expect("it can be read").is_empty());
        for key in 0..4 {
            map.insert(key, [key, 7]).expect("there is room");
        }
        let full = map.insert(9, [0, 0]).expect_err("it is full");
        assert_eq!(full.raw_os_error(), Some(libc::E2BIG));
        let mut entries = map.entries().expect("it can be read");
        entries.sort_unstable();
        assert_eq!(entries, [0, 1, 2, 3].map(|key| (key, [key, 7])));
        // `r0 = 0` and `exit`.
        let [zero, exit] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let program = [u64::from_ne_bytes(zero), u64::from_ne_bytes(exit)];
        let program = BpfProgram::load(&program).expect("it is right");
        assert_eq!(program.missed().expect("it can be read"), 0);
        let error = BpfProgram::load(&[u64::from_ne_bytes(exit)]).expect_err("it returns nothing");
        assert!(error.to_string().contains("R0 !read_ok"), "{error}");
    }
}
