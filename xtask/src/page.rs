//! `cargo xtask page`: the status page in a real browser, at a phone's and a desk's width, light and dark.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{self, found};
use crate::progress::step;
use crate::repository;
use crate::serving::{MODEL, Server};

/// A phone of usual size, and a desk.
const SIZES: [(&str, u32, u32); 2] = [("phone", 390, 844), ("desk", 1280, 800)];
/// As Chromium numbers them.
const SCHEMES: [(&str, u32); 2] = [("dark", 0), ("light", 1)];
/// Requests that the page shows.
const REQUESTS: usize = 8;

/// All looks; their pictures lie in .cache/page afterwards.
///
/// # Errors
/// When the browser says anything in its console, something is wider than the phone, or the page shows other requests than there were.
pub fn run() -> Result<()> {
    let browser = browser()?;
    let folder = repository::cache().join("page");
    let server = Server::alone(&folder, None, &["--max-context", "4096"])?;
    for i in 0..REQUESTS {
        let body =
            json!({"model": MODEL, "prompt": vec![30 + i; 40 * i + 3], "max_tokens": 24, "ignore_eos": true});
        ureq::post(format!("{}/v1/completions", server.url)).send_json(&body)?;
    }
    for (size, width, height) in SIZES {
        for (scheme, number) in SCHEMES {
            let look = Look {
                browser: &browser,
                folder: &folder,
                width,
                height,
                scheme: number,
            };
            step(&format!("{size}, {scheme}"), || {
                look.check(&server.url, &format!("{size}-{scheme}"))
            })?;
        }
        let shots = SCHEMES.map(|(scheme, _)| std::fs::read(folder.join(format!("{size}-{scheme}.png"))));
        let [dark, light] = shots;
        ensure!(dark? != light?, "{size}: dark and light look alike");
    }
    Ok(())
}

/// Debian's browser, installed when it is missing and this is root.
fn browser() -> Result<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let there = || names.into_iter().find(|name| found(name)).map(PathBuf::from);
    if let Some(browser) = there() {
        return Ok(browser);
    }
    if !process::is_root() || !found("apt-get") {
        bail!("chromium is missing: install it, or `cargo xtask test --skip page`");
    }
    step("chromium is installed", || {
        process::output(Command::new("apt-get").arg("update"))?;
        process::output(Command::new("apt-get").args([
            "install",
            "--yes",
            "--no-install-recommends",
            "chromium",
        ]))
    })?;
    there().context("chromium is not there after its installation")
}

/// One width and one colour scheme.
struct Look<'a> {
    browser: &'a Path,
    folder: &'a Path,
    width: u32,
    height: u32,
    scheme: u32,
}

impl Look<'_> {
    fn check(&self, url: &str, name: &str) -> Result<()> {
        let shot = self.folder.join(format!("{name}.png"));
        // The shot of an earlier run must not pass for this one's.
        let _ = std::fs::remove_file(&shot);
        let mut command = self.command();
        command.arg(format!("--screenshot={}", shot.display()));
        self.quiet(command.arg(url))?;
        ensure!(shot.exists(), "{name}: no picture was taken");
        let probe = serve(self.probe(url))?;
        let mut command = self.command();
        // The probe looks into a frame of another port.
        command.args(["--disable-web-security", "--dump-dom"]);
        let document = self.quiet(command.arg(probe))?;
        self.found(&document)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.browser);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            "--log-level=0",
        ]);
        command.arg(format!(
            "--user-data-dir={}",
            self.folder.join("profile").display()
        ));
        command.arg(format!("--window-size={},{}", self.width, self.height));
        command.arg(format!("--blink-settings=preferredColorScheme={}", self.scheme));
        // Time of the page, not of the clock: three rounds of its requests.
        command.arg("--virtual-time-budget=3500");
        command
    }

    /// Runs the browser; nothing may be in its console.
    fn quiet(&self, command: &mut Command) -> Result<String> {
        let output = command.output().context("starting the browser")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "the browser ended with {}:\n{said}",
            output.status
        );
        let console: Vec<_> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
        ensure!(console.is_empty(), "the console says:\n{}", console.join("\n"));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A page that holds the status page in a frame of this width and tells what it finds there.
    fn probe(&self, url: &str) -> String {
        format!(
            r##"<!doctype html><title>probe</title><iframe id="frame" src="{url}/" style="border:0;width:{}px;height:{}px"></iframe><pre id="found"></pre>
<script>
setTimeout(() => {{
  const page = document.getElementById("frame").contentDocument, root = page.documentElement;
  const style = getComputedStyle(page.body), name = page.querySelector(".row .name");
  document.getElementById("found").textContent = JSON.stringify({{
    width: root.scrollWidth, rows: page.querySelectorAll("#requests .row").length, model: page.getElementById("model").textContent,
    state: page.getElementById("state").textContent, background: style.backgroundColor, color: style.color, text: name && name.textContent,
  }});
}}, 3000);
</script>"##,
            self.width, self.height
        )
    }

    fn found(&self, document: &str) -> Result<()> {
        let text = document
            .split_once("<pre id=\"found\">")
            .and_then(|(_, rest)| rest.split_once("</pre>"))
            .map(|(text, _)| text)
            .with_context(|| format!("the probe told nothing: {document}"))?;
        let found: Value = serde_json::from_str(text).with_context(|| format!("the probe told {text:?}"))?;
        ensure!(
            found["width"]
                .as_u64()
                .is_some_and(|width| width <= u64::from(self.width)),
            "width: expected at most {}, found {}",
            self.width,
            found["width"]
        );
        ensure!(
            found["rows"] == json!(REQUESTS),
            "rows: expected {REQUESTS}, found {}",
            found["rows"]
        );
        ensure!(
            found["state"]
                .as_str()
                .is_some_and(|state| state.starts_with("up ")),
            "state: expected how long it is up, found {}",
            found["state"]
        );
        let (dark, light) = (brightness(&found["background"]), brightness(&found["color"]));
        let (darker, lighter) = if self.scheme == 0 {
            (dark, light)
        } else {
            (light, dark)
        };
        ensure!(
            matches!((darker, lighter), (Some(darker), Some(lighter)) if lighter - darker > 100.0),
            "contrast: expected a page that is {}, found {} on {}",
            if self.scheme == 0 { "dark" } else { "light" },
            found["color"],
            found["background"]
        );
        Ok(())
    }
}

/// A page at a loopback address of its own, for as long as this process runs.
fn serve(page: String) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A browser also asks for an icon; it gets the same.
            let mut head = [0; 4096];
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
            // One that leaves is the browser's own matter.
            let _ = stream
                .read(&mut head)
                .and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
    Ok(format!("http://{address}/"))
}

/// Mean of the three parts of `rgb(r, g, b)`.
fn brightness(color: &Value) -> Option<f64> {
    let inner = color.as_str()?.split_once('(')?.1.trim_end_matches(')');
    let parts: Vec<f64> = inner
        .split(',')
        .take(3)
        .filter_map(|part| part.trim().parse().ok())
        .collect();
    (parts.len() == 3).then(|| parts.iter().sum::<f64>() / 3.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_have_a_brightness() {
        assert_eq!(brightness(&json!("rgb(0, 30, 60)")), Some(30.0));
        assert_eq!(brightness(&json!("rgba(3, 3, 3, 0.5)")), Some(3.0));
        assert_eq!(brightness(&json!("red")), None);
    }
}
