//! `metal-check` where there is no Mac.

use std::process::Command;

#[cfg_attr(not(target_os = "macos"), test)]
#[cfg_attr(target_os = "macos", allow(dead_code))]
fn without_a_device_it_says_what_is_missing_and_prints_no_table() {
    let output = Command::new(env!("CARGO_BIN_EXE_metal-check")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("expected macOS on Apple silicon"), "{said}");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
}
