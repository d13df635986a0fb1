//! The programs that the kernel runs at its functions, and the maps in which they count.

use std::io;

use uncopied::{BpfMap, BpfMapKind, BpfProgram};

use super::assembler::{Assembler, Helper, If, R0, R1, R6, R7, R8};
use super::btf::{Structure, Types};
use crate::commands::audit::symbols::KernelSymbols;

/// The number of senders and of processes that the maps have room for.
const MAX_SENDERS: u32 = 65_536;
const MAX_COUNTS: u32 = 16_384;
const MAX_TASKS: u32 = 4_096;

/// What is counted for a process, in the lowest bits of a key.
pub(super) const REFERENCED: i32 = 0;
pub(super) const COPIED_LATER: i32 = 1;

/// The key under which the bytes are counted for which the maps had no room.
pub(super) const NO_ROOM: u64 = u64::MAX;

/// The functions that free a packet which its sender's socket accounts for. Such a packet is
/// being sent; one that was received has another function, or none.
const SEND_DESTRUCTORS: [&str; 3] = ["tcp_wfree", "sock_wfree", "__sock_wfree"];

/// Where programs keep data on their stack.
const KEY: i16 = -8;
const VALUE: i16 = -16;
const SECOND_WORD: i16 = -8;
const READ: i16 = -24;
const TASK: i16 = -32;

/// The offsets of registers in `struct pt_regs`, the context of a probe.
struct Registers {
    first_argument: i16,
    fourth_argument: i16,
    fifth_argument: i16,
    returned: i16,
}

/// `None` on machines for which they are not known here.
const REGISTERS: Option<Registers> = if cfg!(target_arch = "x86_64") {
    // asm/ptrace.h: rdi, rcx, r8, rax.
    Some(Registers {
        first_argument: 112,
        fourth_argument: 88,
        fifth_argument: 72,
        returned: 80,
    })
} else if cfg!(target_arch = "aarch64") {
    // x0, x3, x4, x0.
    Some(Registers {
        first_argument: 0,
        fourth_argument: 24,
        fifth_argument: 32,
        returned: 0,
    })
} else {
    None
};

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum ProgramsError {
    #[error("this command does not know the registers of this machine")]
    NoRegisters,
    #[error("the kernel does not describe the field {0} of packets")]
    NoField(&'static str),
    #[error("the kernel has no function {0}, or hides its address")]
    NoFunction(&'static str),
    #[error("the kernel refuses BPF programs ({0})")]
    Refused(#[from] io::Error),
}

/// The offsets of fields of `struct sk_buff`, a packet, and `struct skb_shared_info`.
struct Layout {
    /// The length of what is not in the packet's own memory.
    data_len: i32,
    /// The packet's own memory, and the offset of its end, where the shared information is.
    head: i32,
    end: i32,
    /// The socket that accounts for the packet, and the function that frees it.
    sk: i32,
    destructor: i32,
    /// The notification of a send without a copy.
    destructor_arg: i32,
}

/// The maps.
pub(super) struct Maps {
    /// The process that a socket or a notification belongs to, by its address.
    senders: BpfMap<1>,
    /// Bytes, by process and what was counted.
    pub(super) counts: BpfMap<1>,
    /// The sender and the length of the packet that a thread copies just now.
    copying: BpfMap<2>,
    /// The threads that cut a packet into several just now.
    segmenting: BpfMap<1>,
}

/// A program, and where it belongs.
pub(super) struct Placed {
    pub(super) function: &'static str,
    pub(super) at_return: bool,
    pub(super) program: BpfProgram,
}

impl Layout {
    fn find(types: &Types<'_>) -> Result<Self, ProgramsError> {
        let packet = types.structure("sk_buff");
        let shared = types.structure("skb_shared_info");
        let offset = |structure: &Option<Structure<'_>>, field: &'static str| {
            let offset = structure.as_ref().and_then(|found| found.offset(field));
            let offset = offset.and_then(|offset| i32::try_from(offset).ok());
            offset.ok_or(ProgramsError::NoField(field))
        };
        Ok(Self {
            data_len: offset(&packet, "data_len")?,
            head: offset(&packet, "head")?,
            end: offset(&packet, "end")?,
            sk: offset(&packet, "sk")?,
            destructor: offset(&packet, "destructor")?,
            destructor_arg: offset(&shared, "destructor_arg")?,
        })
    }
}

impl Maps {
    fn new() -> io::Result<Self> {
        let maps = Self {
            senders: BpfMap::new(BpfMapKind::LruHash, MAX_SENDERS)?,
            counts: BpfMap::new(BpfMapKind::Hash, MAX_COUNTS)?,
            copying: BpfMap::new(BpfMapKind::Hash, MAX_TASKS)?,
            segmenting: BpfMap::new(BpfMapKind::Hash, MAX_TASKS)?,
        };
        maps.counts.insert(NO_ROOM, [0])?;
        Ok(maps)
    }
}

/// Loads the programs.
pub(super) fn load(
    types: &Types<'_>,
    symbols: &KernelSymbols,
) -> Result<(Maps, Vec<Placed>), ProgramsError> {
    let layout = Layout::find(types)?;
    let registers = REGISTERS.ok_or(ProgramsError::NoRegisters)?;
    let mut destructors = Vec::new();
    for function in SEND_DESTRUCTORS {
        let address = symbols.address(function);
        destructors.push(address.ok_or(ProgramsError::NoFunction(function))?);
    }
    let maps = Maps::new()?;
    let writer = Writer {
        maps: &maps,
        layout,
        registers,
        destructors,
    };
    let first = writer.registers.first_argument;
    let fifth = writer.registers.fifth_argument;
    let returned = writer.registers.returned;
    let (entry, exit) = (false, true);
    let programs = [
        // Whose a socket or a notification is.
        ("tcp_sendmsg_locked", entry, writer.sender(first)),
        ("skb_zerocopy_iter_stream", entry, writer.sender(fifth)),
        ("msg_zerocopy_realloc", exit, writer.sender(returned)),
        ("inet_sock_destruct", entry, writer.no_sender()),
        // What a send has not copied.
        ("skb_splice_from_iter", exit, writer.referenced()),
        ("skb_zerocopy_iter_stream", exit, writer.referenced()),
        // What is copied later.
        ("skb_copy_ubufs", entry, writer.copying_begins()),
        ("skb_copy_ubufs", exit, writer.copying_ends()),
        ("skb_copy_bits", entry, writer.copied()),
        ("skb_copy_and_csum_bits", entry, writer.copied()),
        ("skb_segment", entry, writer.segmenting(true)),
        ("skb_segment", exit, writer.segmenting(false)),
    ];
    let mut placed = Vec::new();
    for (function, at_return, program) in programs {
        placed.push(Placed {
            function,
            at_return,
            program: BpfProgram::load(&program.finish())?,
        });
    }
    Ok((maps, placed))
}

/// Writes the programs.
struct Writer<'a> {
    maps: &'a Maps,
    layout: Layout,
    registers: Registers,
    destructors: Vec<u64>,
}

impl Writer<'_> {
    /// Notes that what a register points to belongs to this process.
    fn sender(&self, register: i16) -> Assembler {
        let mut program = Assembler::default();
        program.load(R6, R1, register);
        program.store_stack(KEY, R6);
        this_process(&mut program);
        program.store_stack(VALUE, R0);
        program.insert(&self.maps.senders, KEY, VALUE, false);
        program.exit();
        program
    }

    /// Notes that a socket is freed, so that its address may become that of another one.
    fn no_sender(&self) -> Assembler {
        let mut program = Assembler::default();
        program.load(R6, R1, self.registers.first_argument);
        program.store_stack(KEY, R6);
        program.remove(&self.maps.senders, KEY);
        program.exit();
        program
    }

    /// Counts the bytes that a function has not copied, which it returns, or a negative number.
    fn referenced(&self) -> Assembler {
        let mut program = Assembler::default();
        program.load(R7, R1, self.registers.returned);
        program.extend_sign(R7);
        let failed = program.jump(If::NotPositive(R7));
        this_process(&mut program);
        program.set(R6, R0);
        self.count(&mut program, REFERENCED);
        program.land(failed);
        program.exit();
        program
    }

    /// Remembers the sender and the length of a packet that is going to be copied. It is that of a
    /// send whose notification is known.
    fn copying_begins(&self) -> Assembler {
        let layout = &self.layout;
        let mut program = Assembler::default();
        program.load(R6, R1, self.registers.first_argument);
        program.read_kernel(READ, 4, R6, layout.data_len);
        program.load_stack_32(R7, READ);
        let empty = program.jump(If::Zero(R7));
        program.read_kernel(READ, 8, R6, layout.head);
        program.load_stack(R8, READ);
        program.read_kernel(READ, 4, R6, layout.end);
        program.load_stack_32(R0, READ);
        program.add(R8, R0);
        program.read_kernel(KEY, 8, R8, layout.destructor_arg);
        self.look_up_sender(&mut program);
        program.store_stack(VALUE, R6);
        program.store_stack(SECOND_WORD, R7);
        this_task(&mut program);
        program.insert(&self.maps.copying, TASK, VALUE, false);
        let stored = program.jump(If::Zero(R0));
        self.count_no_room(&mut program);
        program.land(stored);
        program.land(empty);
        program.exit();
        program
    }

    /// Counts the packet, unless copying it has failed.
    fn copying_ends(&self) -> Assembler {
        let mut program = Assembler::default();
        program.load(R8, R1, self.registers.returned);
        program.extend_sign(R8);
        this_task(&mut program);
        program.look_up(&self.maps.copying, TASK);
        let nothing = program.jump(If::Zero(R0));
        program.load(R6, R0, 0);
        program.load(R7, R0, 8);
        program.remove(&self.maps.copying, TASK);
        let failed = program.jump(If::NotZero(R8));
        self.count(&mut program, COPIED_LATER);
        program.land(failed);
        program.land(nothing);
        program.exit();
        program
    }

    /// Counts bytes that are copied from a packet that is being sent.
    fn copied(&self) -> Assembler {
        let layout = &self.layout;
        let mut program = Assembler::default();
        program.load(R6, R1, self.registers.first_argument);
        program.load(R7, R1, self.registers.fourth_argument);
        program.shift_left(R7, 32);
        program.shift_right(R7, 32);
        program.read_kernel(READ, 8, R6, layout.destructor);
        program.load_stack(R8, READ);
        let mut sent = Vec::new();
        for destructor in &self.destructors {
            program.set_long(R1, *destructor);
            sent.push(program.jump(If::Equal(R8, R1)));
        }
        // A packet without a sender is cut only if it is sent on.
        this_task(&mut program);
        program.look_up(&self.maps.segmenting, TASK);
        let received = program.jump(If::Zero(R0));
        program.set_number(R6, 0);
        let unknown = program.jump(If::Always);
        for jump in sent {
            program.land(jump);
        }
        program.read_kernel(KEY, 8, R6, layout.sk);
        self.look_up_sender(&mut program);
        program.land(unknown);
        self.count(&mut program, COPIED_LATER);
        program.land(received);
        program.exit();
        program
    }

    /// Notes that this thread begins, or ends, to cut a packet into several.
    fn segmenting(&self, begins: bool) -> Assembler {
        let mut program = Assembler::default();
        this_task(&mut program);
        if begins {
            program.store_stack(VALUE, R0);
            program.insert(&self.maps.segmenting, TASK, VALUE, false);
            let stored = program.jump(If::Zero(R0));
            program.set_number(R7, 1);
            self.count_no_room(&mut program);
            program.land(stored);
        } else {
            program.remove(&self.maps.segmenting, TASK);
        }
        program.exit();
        program
    }

    /// Sets `R6` to the process to which what is at `KEY` belongs, or to 0 if that is not known.
    fn look_up_sender(&self, program: &mut Assembler) {
        program.look_up(&self.maps.senders, KEY);
        program.set_number(R6, 0);
        let unknown = program.jump(If::Zero(R0));
        program.load(R6, R0, 0);
        program.land(unknown);
    }

    /// Adds the bytes in `R7` to what is counted for the process in `R6`, and ends the program.
    fn count(&self, program: &mut Assembler, what: i32) {
        let counts = &self.maps.counts;
        program.shift_left(R6, 32);
        program.or_number(R6, what);
        program.store_stack(KEY, R6);
        program.store_stack(VALUE, R7);
        // Twice, because another CPU may insert the key between the first two calls.
        for is_new in [true, false] {
            program.look_up(counts, KEY);
            let missing = program.jump(If::Zero(R0));
            program.add_atomically(R0, R7);
            program.exit();
            program.land(missing);
            if is_new {
                program.insert(counts, KEY, VALUE, true);
                let failed = program.jump(If::NotZero(R0));
                program.exit();
                program.land(failed);
            }
        }
        self.count_no_room(program);
    }

    /// Adds the bytes in `R7` to those for which there was no room.
    fn count_no_room(&self, program: &mut Assembler) {
        program.set_long(R6, NO_ROOM);
        program.store_stack(KEY, R6);
        program.look_up(&self.maps.counts, KEY);
        let missing = program.jump(If::Zero(R0));
        program.add_atomically(R0, R7);
        program.land(missing);
    }
}

/// Sets `R0` to the number of this process.
fn this_process(program: &mut Assembler) {
    program.call(Helper::CurrentProcessThread);
    program.shift_right(R0, 32);
}

/// Stores what identifies this thread at `TASK`. Its number does not: it is 0 on each idle CPU.
fn this_task(program: &mut Assembler) {
    program.call(Helper::CurrentTask);
    program.store_stack(TASK, R0);
}
