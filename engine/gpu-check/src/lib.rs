//! Whether a GPU computes what it should, and how near its limits it comes.
//!
//! [`correct`] runs every kernel and a whole model beside their references, [`speed`] measures the device's own limits and what the kernels reach of
//! them, [`tokens`] what a token costs beside its arithmetic, [`roofline`] says what limits of bandwidth and arithmetic allow for the published file. Each gives the rows of a Markdown table.

mod activations;
pub mod correct;
pub mod roofline;
pub mod speed;
pub mod tokens;

/// A Markdown table: its columns, then its rows.
#[must_use]
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let rule = vec!["---".to_owned(); columns.len()];
    let mut text = line(&head) + &line(&rule).replace(' ', "");
    rows.iter().for_each(|row| text += &line(row));
    text
}
