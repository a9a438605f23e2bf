//! The program on the emulated device, with a wrong kernel, and where there is no driver.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn run(driver: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ds4-gpu-check"));
    command.args(arguments).env_remove("LD_LIBRARY_PATH");
    if let Some(library) = driver {
        command.env("LD_LIBRARY_PATH", library.parent().unwrap());
    }
    command.output().unwrap()
}

#[test]
fn the_report_names_the_device_and_every_verdict_and_claims_no_speed_of_an_emulator() {
    let output = run(Some(ds4_emu::library()), &[]);
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}{errors}");
    for part in [
        "- device: emulated on the CPU",
        "- date: 20",
        "- commit: ",
        "device stage, CPU decodes",
        "equal bits",
        "mean nothing",
    ] {
        assert!(said.contains(part), "{part:?} in\n{said}");
    }
    assert!(!said.contains("wrong") && !said.contains("GB/s"), "{said}");
}

#[test]
fn a_machine_without_a_driver_is_told_what_is_missing() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let output = run(None, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("expected libcuda.so, found none"), "{said}");
}
