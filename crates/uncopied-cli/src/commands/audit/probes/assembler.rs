//! An assembler for BPF (RFC 9669).

use std::os::fd::AsRawFd;

use uncopied::BpfMap;

/// A register.
#[derive(Clone, Copy)]
pub(super) struct Register(u8);

/// What a call returns.
pub(super) const R0: Register = Register(0);
/// The arguments of a call. At the beginning, the first one is the context.
pub(super) const R1: Register = Register(1);
pub(super) const R2: Register = Register(2);
pub(super) const R3: Register = Register(3);
const R4: Register = Register(4);
/// Registers that calls leave alone.
pub(super) const R6: Register = Register(6);
pub(super) const R7: Register = Register(7);
pub(super) const R8: Register = Register(8);
/// The end of the stack.
const R10: Register = Register(10);

/// Operations, with their sizes and sources.
const ADD_NUMBER: u8 = 0x07;
const ADD_REGISTER: u8 = 0x0f;
const OR_NUMBER: u8 = 0x47;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const SHIFT_RIGHT_SIGNED: u8 = 0xc7;
const MOVE_NUMBER: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const LOAD_NUMBER_64: u8 = 0x18;
const LOAD_32: u8 = 0x61;
const LOAD_64: u8 = 0x79;
const STORE_64: u8 = 0x7b;
const ADD_ATOMICALLY_64: u8 = 0xdb;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP: u8 = 0x05;

/// The source of [`LOAD_NUMBER_64`] that makes its number the descriptor of a map
/// (`BPF_PSEUDO_MAP_FD`).
const MAP: Register = Register(1);

/// Functions of the kernel, by their numbers (`bpf-helpers(7)`).
#[derive(Clone, Copy)]
pub(super) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    CurrentProcessThread = 14,
    CurrentTask = 35,
    ReadKernel = 113,
}

/// When a jump is made.
#[derive(Clone, Copy)]
pub(super) enum If {
    Always,
    /// The register is 0.
    Zero(Register),
    NotZero(Register),
    /// The register, as a signed number, is at most 0.
    NotPositive(Register),
    Equal(Register, Register),
}

/// A jump forward, whose target is not known yet.
#[must_use]
pub(super) struct Jump(usize);

/// A program in the making.
#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<u64>,
}

impl Assembler {
    fn push(&mut self, operation: u8, to: Register, from: Register, offset: i16, number: i32) {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = number.to_le_bytes();
        let registers = to.0 | (from.0 << 4);
        let bytes = [operation, registers, low, high, a, b, c, d];
        self.instructions.push(u64::from_le_bytes(bytes));
    }

    pub(super) fn set(&mut self, to: Register, from: Register) {
        self.push(MOVE_REGISTER, to, from, 0, 0);
    }

    pub(super) fn set_number(&mut self, to: Register, number: i32) {
        self.push(MOVE_NUMBER, to, R0, 0, number);
    }

    /// Sets a register to a number of 64 bits.
    pub(super) fn set_long(&mut self, to: Register, number: u64) {
        self.push_long(to, R0, number);
    }

    fn push_long(&mut self, to: Register, kind: Register, number: u64) {
        let half = |number: u64| (number as u32).cast_signed();
        self.push(LOAD_NUMBER_64, to, kind, 0, half(number));
        self.push(0, R0, R0, 0, half(number >> 32));
    }

    pub(super) fn add(&mut self, to: Register, from: Register) {
        self.push(ADD_REGISTER, to, from, 0, 0);
    }

    pub(super) fn add_number(&mut self, to: Register, number: i32) {
        self.push(ADD_NUMBER, to, R0, 0, number);
    }

    pub(super) fn or_number(&mut self, to: Register, number: i32) {
        self.push(OR_NUMBER, to, R0, 0, number);
    }

    pub(super) fn shift_left(&mut self, to: Register, bits: i32) {
        self.push(SHIFT_LEFT, to, R0, 0, bits);
    }

    pub(super) fn shift_right(&mut self, to: Register, bits: i32) {
        self.push(SHIFT_RIGHT, to, R0, 0, bits);
    }

    /// Makes a register that holds an `int` hold the same number in all its 64 bits.
    pub(super) fn extend_sign(&mut self, to: Register) {
        self.shift_left(to, 32);
        self.push(SHIFT_RIGHT_SIGNED, to, R0, 0, 32);
    }

    /// Loads the 8 bytes at an offset from the address in a register.
    pub(super) fn load(&mut self, to: Register, from: Register, offset: i16) {
        self.push(LOAD_64, to, from, offset, 0);
    }

    /// Loads 8 bytes, or 4, from the stack.
    pub(super) fn load_stack(&mut self, to: Register, offset: i16) {
        self.load(to, R10, offset);
    }

    pub(super) fn load_stack_32(&mut self, to: Register, offset: i16) {
        self.push(LOAD_32, to, R10, offset, 0);
    }

    pub(super) fn store_stack(&mut self, offset: i16, from: Register) {
        self.push(STORE_64, R10, from, offset, 0);
    }

    /// Adds a register to the 8 bytes at an address, which others may change at the same time.
    pub(super) fn add_atomically(&mut self, address: Register, from: Register) {
        self.push(ADD_ATOMICALLY_64, address, from, 0, 0);
    }

    pub(super) fn call(&mut self, helper: Helper) {
        self.push(CALL, R0, R0, 0, helper as i32);
    }

    /// Ends the program. The event of the probe is then not recorded.
    pub(super) fn exit(&mut self) {
        self.set_number(R0, 0);
        self.push(EXIT, R0, R0, 0, 0);
    }

    pub(super) fn jump(&mut self, condition: If) -> Jump {
        let at = self.instructions.len();
        match condition {
            If::Always => self.push(JUMP, R0, R0, 0, 0),
            If::Zero(register) => self.push(0x15, register, R0, 0, 0),
            If::NotZero(register) => self.push(0x55, register, R0, 0, 0),
            If::NotPositive(register) => self.push(0xd5, register, R0, 0, 0),
            If::Equal(one, other) => self.push(0x1d, one, other, 0, 0),
        }
        Jump(at)
    }

    /// Makes a jump lead here.
    pub(super) fn land(&mut self, jump: Jump) {
        let Jump(at) = jump;
        let over = ((self.instructions.len() - at - 1) as u64) & 0xffff;
        if let Some(instruction) = self.instructions.get_mut(at) {
            *instruction |= over << 16;
        }
    }

    /// Looks a key on the stack up. The address of its value, or 0, is then in `R0`.
    pub(super) fn look_up<const WORDS: usize>(&mut self, map: &BpfMap<WORDS>, key: i16) {
        self.map_and_key(map, key);
        self.call(Helper::MapLookup);
    }

    /// Removes a key on the stack.
    pub(super) fn remove<const WORDS: usize>(&mut self, map: &BpfMap<WORDS>, key: i16) {
        self.map_and_key(map, key);
        self.call(Helper::MapDelete);
    }

    /// Sets a key on the stack to a value on the stack. `R0` is then 0 if there was room. If the
    /// entry must be new, that it exists is a failure.
    pub(super) fn insert<const WORDS: usize>(
        &mut self,
        map: &BpfMap<WORDS>,
        key: i16,
        value: i16,
        is_new: bool,
    ) {
        self.map_and_key(map, key);
        self.stack_address(R3, value);
        self.set_number(R4, i32::from(is_new));
        self.call(Helper::MapUpdate);
    }

    fn map_and_key<const WORDS: usize>(&mut self, map: &BpfMap<WORDS>, key: i16) {
        self.push_long(R1, MAP, u64::from(map.as_raw_fd().cast_unsigned()));
        self.stack_address(R2, key);
    }

    /// Reads `bytes` bytes of the kernel's memory at an address and an offset, to the stack. What
    /// cannot be read is 0.
    pub(super) fn read_kernel(&mut self, to: i16, bytes: i32, address: Register, offset: i32) {
        self.set(R3, address);
        self.add_number(R3, offset);
        self.stack_address(R1, to);
        self.set_number(R2, bytes);
        self.call(Helper::ReadKernel);
    }

    fn stack_address(&mut self, to: Register, offset: i16) {
        self.set(to, R10);
        self.add_number(to, offset.into());
    }

    pub(super) fn finish(self) -> Vec<u64> {
        self.instructions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_in_the_standard() {
        let mut program = Assembler::default();
        program.set_number(R6, -1);
        program.load(R7, R1, 112);
        let jump = program.jump(If::Zero(R6));
        program.set_long(R2, 0x1122_3344_5566_7788);
        program.land(jump);
        program.exit();
        let bytes: Vec<_> = program.finish().into_iter().map(u64::to_le_bytes).collect();
        assert_eq!(
            bytes,
            [
                [0xb7, 0x06, 0, 0, 0xff, 0xff, 0xff, 0xff],
                [0x79, 0x17, 112, 0, 0, 0, 0, 0],
                [0x15, 0x06, 2, 0, 0, 0, 0, 0],
                [0x18, 0x02, 0, 0, 0x88, 0x77, 0x66, 0x55],
                [0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11],
                [0xb7, 0, 0, 0, 0, 0, 0, 0],
                [0x95, 0, 0, 0, 0, 0, 0, 0],
            ]
        );
    }
}
