//! Notes the commit that the program is built from: `DS4_COMMIT`, or what git says; a build outside of a checkout says that it is unknown.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DS4_COMMIT");
    let given = std::env::var("DS4_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = given.or_else(head).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=DS4_COMMIT={commit}");
}

fn head() -> Option<String> {
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
