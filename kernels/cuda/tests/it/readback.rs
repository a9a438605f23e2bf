//! Copies to the host beside the computing come after what they copy, whenever the streams do their work.

use ds4_kernels_cuda::{Arena, Readback, Segments, Staging};

use ds4_emu::{Turn, turn};

/// Bits of [`ds4_emu::Emulator::late`].
const COMPUTING: u64 = 1;
const COPYING: u64 = 2;

/// What reaches the host of two pieces that kernels write, with the work on some streams done late.
fn copied(turn: &Turn, late: u64) -> Vec<u8> {
    let device = &*turn.device;
    let (arena, mut staging) = (Arena::default(), Staging::default());
    turn.emulator.late(late);
    let first = arena.upload(device, &[1u8, 2, 3, 4]).unwrap();
    let second = arena.upload(device, &[5u8, 6]).unwrap();
    let mut readback = Readback::new(device, &mut staging, 6).unwrap();
    for piece in [first, second] {
        let out = arena.take(device, piece.len()).unwrap();
        let mut segments = Segments::default();
        segments.push(piece, out);
        segments.run(device, &arena).unwrap();
        readback.copy(out).unwrap();
    }
    readback.bytes().unwrap().to_vec()
}

#[test]
fn the_host_gets_what_the_kernels_before_the_copy_wrote() {
    let turn = turn();
    for late in [0, COMPUTING, COPYING, COMPUTING | COPYING] {
        assert_eq!(copied(&turn, late), [1, 2, 3, 4, 5, 6], "streams {late:#b} late");
    }
}

#[test]
fn a_copy_that_does_not_wait_for_the_kernel_is_seen() {
    let turn = turn();
    turn.emulator.deaf(true);
    assert_ne!(copied(&turn, COMPUTING), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn more_than_there_is_room_for_is_refused() {
    let turn = turn();
    let (arena, mut staging) = (Arena::default(), Staging::default());
    let bytes = arena.upload(&turn.device, &[0u8; 9]).unwrap();
    let mut readback = Readback::new(&turn.device, &mut staging, 8).unwrap();
    let refused = readback.copy(bytes).unwrap_err().to_string();
    assert_eq!(refused, "copy to the host: bytes: expected 8, found 9");
}
