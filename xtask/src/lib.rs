//! The project's own commands, as a library.

pub mod ask;
pub mod bench;
pub mod cluster;
pub mod containers;
pub mod darwin;
pub mod demo;
pub mod fatbin;
pub mod formats;
pub mod fuzz;
pub mod golden;
pub mod images;
pub mod journey;
pub mod oracle;
pub mod page;
pub mod process;
pub mod processes;
pub mod progress;
pub mod python;
mod released;
pub mod repository;
pub mod sanitize;
pub mod sdk;
mod serving;
pub mod soak;
pub mod steps;
pub mod tools;
pub mod trace;
