//! Files that lie: every one is refused with an error, none ends the process or makes it allocate what the file only claims.

use std::io::Write;

use ds4_gguf::{Gguf, GgufError};
use proptest::prelude::*;

/// Appends in GGUF's encoding.
#[derive(Default)]
struct Header(Vec<u8>);

impl Header {
    fn new(tensors: u64, pairs: u64) -> Self {
        let mut header = Self(b"GGUF".to_vec());
        header.u32(3);
        header.u64(tensors);
        header.u64(pairs);
        header
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn tensor(&mut self, name: &str, dims: &[u64], format: u32, offset: u64) {
        self.text(name);
        self.u32(dims.len() as u32);
        dims.iter().for_each(|dim| self.u64(*dim));
        self.u32(format);
        self.u64(offset);
    }

    fn with_data(mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self.0
    }
}

fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    Gguf::open(file.path())
}

fn refusal(bytes: &[u8]) -> String {
    open(bytes).expect_err("the file is broken").to_string()
}

/// Two F32 tensors of eight numbers, one key.
fn sound() -> Vec<u8> {
    let mut header = Header::new(2, 1);
    header.text("general.name");
    header.u32(8);
    header.text("sound");
    header.tensor("a", &[8], 0, 0);
    header.tensor("b", &[4, 2], 0, 32);
    header.with_data(64)
}

#[test]
fn a_sound_file_opens() {
    let gguf = open(&sound()).expect("sound");
    assert_eq!(gguf.metadata().string("general.name").expect("there"), "sound");
    assert_eq!(
        gguf.tensor("b").map(|tensor| (tensor.bytes, tensor.offset % 32)),
        Some((32, 0))
    );
}

#[test]
fn every_truncation_is_refused() {
    let sound = sound();
    for length in 0..sound.len() {
        assert!(
            open(&sound[..length]).is_err(),
            "{length} of {} bytes",
            sound.len()
        );
    }
}

#[test]
fn other_files_are_named_for_what_they_are_not() {
    assert!(
        refusal(b"\x89PNG\r\n\x1a\n____________________").contains("expected \"GGUF\", found \"\\x89PNG\"")
    );
    assert!(refusal(b"").contains("header: expected 24 bytes at offset 0, found 0"));
    let mut old = sound();
    old[4] = 2;
    assert!(refusal(&old).contains("version: expected 3, found 2"));
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    assert!(refusal(&Header::new(1 << 60, 0).with_data(64)).contains("tensor count: expected at most"));
    assert!(refusal(&Header::new(0, 1 << 60).with_data(64)).contains("metadata count: expected at most"));
    let mut header = Header::new(0, 1);
    header.text("list");
    header.u32(9);
    header.u32(4);
    header.u64(u64::MAX);
    assert!(refusal(&header.with_data(64)).contains("list: expected at most"));
    let mut header = Header::new(0, 1);
    header.u64(u64::MAX);
    assert!(refusal(&header.with_data(64)).contains("metadata key 0: expected 18446744073709551615 bytes"));
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let mut header = Header::new(2, 0);
    header.tensor("a", &[16], 0, 0);
    header.tensor("b", &[8], 0, 32);
    assert!(refusal(&header.with_data(64)).contains("tensors a and b overlap"));
}

#[test]
fn tensors_with_impossible_records_are_refused_by_name() {
    let one = |dims: &[u64], format, offset| {
        let mut header = Header::new(1, 0);
        header.tensor("t", dims, format, offset);
        refusal(&header.with_data(64))
    };
    assert!(one(&[8], 0, 64).contains("tensor t: expected 32 bytes"));
    assert!(one(&[8], 0, 16).contains("t: expected an offset aligned to 32, found 16"));
    assert!(one(&[8], 0, u64::MAX - 31).contains("tensor t"));
    assert!(one(&[u64::MAX, 2], 0, 0).contains("t: expected whole F32 rows of a size that fits"));
    assert!(one(&[33], 8, 0).contains("whole Q8_0 rows"));
    assert!(one(&[0], 0, 0).contains("dimensions [0]"));
    assert!(one(&[1, 1, 1, 1, 1], 0, 0).contains("t: expected 1 to 4 dimensions, found 5"));
    assert!(one(&[8], 30, 0).contains("found type id 30"));
}

#[test]
fn the_fingerprint_sees_header_and_data() {
    let sound = sound();
    let print = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(bytes).expect("room for it");
        Gguf::open(file.path())
            .and_then(|gguf| gguf.fingerprint())
            .expect("sound")
            .to_string()
    };
    let mut other = sound.clone();
    *other.last_mut().expect("not empty") = 1;
    assert_eq!(print(&sound), print(&sound));
    assert_ne!(print(&sound), print(&other));
    assert_eq!(print(&sound).len(), 64);
}

proptest! {
    #[test]
    fn no_flipped_byte_panics(at in 0_usize..120, value: u8) {
        let mut bytes = sound();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = open(&bytes).map(|gguf| gguf.fingerprint());
    }

    #[test]
    fn no_noise_after_the_magic_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        prop_assert!(open(&bytes).is_err() || bytes.len() >= 24);
    }
}
