//! Weights go up piece by piece: what is there in the end is what was given, whenever the streams do their work, and every wait is needed.

use ds4_emu::{Turn, turn};
use ds4_kernels::{Format, Matrix};
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::{CudaError, Device, Slice, Uploads, Way};

/// Bits of [`ds4_emu::Emulator::late`].
const COMPUTING: u64 = 1;
const COPYING: u64 = 2;
/// Bytes that an upload is for: pieces are half as large.
const BYTES: usize = 2048;

/// `count` bytes of which no piece is like another.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 251 + i / 1024) as u8).collect()
}

/// Bytes that went up in five pieces, and how far the host was told they were, after each.
fn plain(turn: &Turn) -> (Vec<u8>, Vec<u64>) {
    let (given, mut told) = (bytes(5 * BYTES / 2), Vec::new());
    let buffer = turn.device.allocate("test", given.len()).unwrap();
    let mut progress = |landed| told.push(landed);
    let mut uploads = Uploads::new(&turn.device, BYTES, &mut progress).unwrap();
    uploads.write(&given, buffer.all()).unwrap();
    uploads.finish().unwrap();
    (turn.device.download(buffer.all()).unwrap(), told)
}

/// A matrix whose blocks are sorted on the device: what multiplying with it gives, through all of its pieces.
fn sorted(turn: &Turn) -> Vec<f32> {
    let (rows, cols) = (80, 64);
    let block = Format::Q8_0.block_bytes();
    let mut blocks = bytes(rows * cols / 32 * block);
    for block in blocks.chunks_mut(block) {
        block[..2].copy_from_slice(&[0, 0x3c]); // a scale of one
    }
    let matrix = Matrix::new(Format::Q8_0, rows, cols, &blocks).unwrap();
    let quiet = &mut |_| {};
    let mut uploads = Uploads::new(&turn.device, BYTES, quiet).unwrap();
    let weights = Weights::through(&mut uploads, &matrix).unwrap();
    uploads.finish().unwrap();
    product(&turn.device, &weights)
}

fn product(device: &Device, weights: &Weights) -> Vec<f32> {
    use ds4_kernels_cuda::{activation::quantize, matmul::quantized};
    let x: Vec<f32> = (0..weights.cols()).map(|i| i as f32 - 30.0).collect();
    let x = device.upload("test", &x).unwrap();
    let codes = device.allocate("test", x.len()).unwrap();
    let scales = device.allocate("test", x.len() / 32).unwrap();
    let y = device.allocate("test", weights.rows()).unwrap();
    let form = ds4_kernels::Form::Q8;
    let x = quantize(device, form, x.len(), x.all(), codes.all(), scales.all()).unwrap();
    quantized(device, weights.all(), x, y.all()).unwrap();
    device.download(y.all()).unwrap()
}

#[test]
fn what_went_up_in_pieces_is_there_whenever_the_streams_do_their_work() {
    let turn = turn();
    let expected = sorted(&turn);
    for late in [0, COMPUTING, COPYING, COMPUTING | COPYING] {
        turn.emulator.late(late);
        assert!(plain(&turn).0 == bytes(5 * BYTES / 2), "streams {late:#b} late");
        assert_eq!(sorted(&turn), expected, "streams {late:#b} late");
    }
}

#[test]
fn a_piece_goes_up_while_the_next_is_read_and_is_told_when_it_is_there() {
    let turn = turn();
    turn.emulator.late(COMPUTING | COPYING);
    let (mut told, buffer) = (Vec::new(), turn.device.allocate("test", BYTES).unwrap());
    let mut progress = |landed| told.push(landed);
    let mut uploads = Uploads::new(&turn.device, BYTES, &mut progress).unwrap();
    uploads.write(&bytes(BYTES), buffer.all()).unwrap();
    assert_eq!(
        uploads.landed(),
        0,
        "nobody waits while there is memory to read into"
    );
    uploads.write(&[7; 9], buffer.all().range(0..9)).unwrap();
    assert_eq!(uploads.landed(), 1024, "the first piece gave its memory back");
    uploads.finish().unwrap();
    assert_eq!(told, [1024, 1033, 2057]);
    assert_eq!(plain(&turn).1, [1024, 2048, 3072, 4096, 5120]);
}

#[test]
fn memory_that_is_written_again_before_its_copy_is_done_is_seen() {
    let turn = turn();
    // The computing waits for the copies, so both are late.
    turn.emulator.late(COMPUTING | COPYING);
    turn.emulator.hasty(true);
    assert!(plain(&turn).0 != bytes(5 * BYTES / 2));
}

#[test]
fn blocks_that_are_sorted_before_they_are_there_are_seen() {
    let turn = turn();
    let expected = sorted(&turn);
    turn.emulator.late(COPYING);
    turn.emulator.deaf(true);
    assert_ne!(sorted(&turn), expected);
}

#[test]
fn blocks_that_are_written_again_before_they_are_sorted_are_seen() {
    let turn = turn();
    let expected = sorted(&turn);
    turn.emulator.late(COMPUTING);
    turn.emulator.deaf(true);
    assert_ne!(sorted(&turn), expected);
}

/// How an upload of [`BYTES`] says that it went; what came must be what was given.
fn way(device: &Device) -> Way {
    let (given, quiet) = (bytes(2 * BYTES), &mut |_| {});
    let buffer = device.allocate("test", given.len()).unwrap();
    let mut uploads = Uploads::new(device, BYTES, quiet).unwrap();
    uploads.write(&given, buffer.all()).unwrap();
    let way = uploads.finish().unwrap();
    assert!(device.download(buffer.all()).unwrap() == given, "{way}");
    way
}

#[test]
fn page_locked_memory_is_given_back_and_where_it_is_refused_the_mapped_file_is_copied_and_that_is_said() {
    let turn = turn();
    let before = turn.emulator.locked();
    assert_eq!(way(&turn.device), Way::Staged(BYTES));
    assert_eq!(turn.emulator.locked(), before);
    // Room for one of two.
    turn.emulator.lockable(before + BYTES / 2);
    let refused = way(&turn.device);
    assert_eq!(turn.emulator.locked(), before);
    let said = refused.to_string();
    assert!(matches!(refused, Way::Refused(BYTES, _)), "{said}");
    assert!(
        said.contains("2048 bytes of page-locked memory were refused (cuMemHostAlloc"),
        "{said}"
    );
}

#[test]
fn a_device_that_shares_the_hosts_memory_locks_none() {
    let turn = turn();
    turn.emulator.unified(true);
    turn.emulator.lockable(0);
    let shared = Device::open(0).unwrap();
    assert!(shared.facts().unified);
    assert_eq!(way(&shared), Way::Shared);
    assert!(Way::Shared.to_string().contains("shares the host's memory"));
}

#[test]
fn an_upload_that_ends_half_way_waits_for_what_is_on_the_way() {
    let turn = turn();
    turn.emulator.late(COMPUTING | COPYING);
    let (given, quiet) = (bytes(BYTES), &mut |_| {});
    let buffer = turn.device.allocate("test", given.len()).unwrap();
    let mut uploads = Uploads::new(&turn.device, BYTES, quiet).unwrap();
    uploads.write(&given, buffer.all()).unwrap();
    let refused = uploads.write(&given, buffer.all().range(0..1)).unwrap_err();
    assert!(matches!(refused, CudaError::Shape { .. }), "{refused}");
    drop(uploads);
    let all: Slice<'_, u8> = buffer.all();
    assert_eq!(turn.device.download(all).unwrap(), given);
}
