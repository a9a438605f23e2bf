#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| ds4_runtime::fuzzing::kv_frames(input));
