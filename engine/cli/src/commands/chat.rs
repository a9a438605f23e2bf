//! `ds4 chat`: a conversation in the terminal.

use std::io::{IsTerminal, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use rustyline::error::ReadlineError;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::args::ChatArguments;
use crate::client::{Line, Server, Stream};
use crate::load;

const HELP: &str =
    "/new forgets the conversation, /think NONE|LOW|HIGH|MAX, /system TEXT, /exit; Ctrl-C stops an answer";

pub(crate) async fn run(arguments: ChatArguments) -> Result<()> {
    let (_process, url) = match &arguments.model {
        Some(_) => {
            let (process, url) = own_server(&arguments).await?;
            (Some(process), url)
        }
        None => (None, arguments.server.url.clone()),
    };
    let server = Server::new(&url, arguments.server.api_key.clone())?;
    let mut chat = Chat {
        model: server.model().await?,
        server,
        system: arguments.system,
        effort: arguments.think,
        temperature: arguments.temp,
        max_tokens: arguments.max_tokens,
        messages: Vec::new(),
        plain: !std::io::stdout().is_terminal(),
    };
    if !chat.plain {
        eprintln!("{} at {url}. {HELP}", chat.model);
    }
    chat.converse().await
}

/// A server of our own, for a model file. It ends with us.
async fn own_server(arguments: &ChatArguments) -> Result<(Child, String)> {
    let model = arguments.model.as_deref().context("--model")?;
    let program = std::env::current_exe().context("the path of this program")?;
    let mut process = Command::new(program)
        .args(["serve", "--listen", "127.0.0.1:0", "--model"])
        .arg(model)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = process.stdout.take().context("the server's output")?;
    let mut lines = BufReader::new(stdout).lines();
    let address = loop {
        let line = lines.next_line().await?;
        let Some(line) = line else {
            bail!(
                "{}: the server ended; `ds4 serve --model` says why",
                model.display()
            )
        };
        if let Some(address) = line.strip_prefix("listening on ") {
            break address.to_owned();
        }
    };
    let url = format!("http://{address}");
    let server = Server::new(&url, None)?;
    let bar = load::bar("loading");
    // A model of a hundred gigabytes takes minutes to load; a server that ends is noticed.
    loop {
        if let Some(status) = process.try_wait()? {
            bail!(
                "{}: the server ended with {status}; `ds4 serve --model` says why",
                model.display()
            );
        }
        let status = server.get("/status").await?;
        match status["loading"].as_u64() {
            Some(percent) => {
                bar.set_length(100);
                bar.set_position(percent);
            }
            None => break,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bar.finish_and_clear();
    Ok((process, url))
}

struct Chat {
    server: Server,
    model: String,
    system: Option<String>,
    effort: String,
    temperature: f32,
    max_tokens: Option<u32>,
    messages: Vec<Value>,
    /// The output is no terminal: only the answers are written.
    plain: bool,
}

/// What became of an answer.
enum Ended {
    Whole(Value),
    Cancelled,
}

impl Chat {
    async fn converse(&mut self) -> Result<()> {
        let mut editor = rustyline::DefaultEditor::new()?;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let line = editor.readline("> ");
                (editor, line)
            });
            let line;
            (editor, line) = read.await?;
            let line = match line {
                Ok(line) => line,
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let text = line.trim();
            if text.is_empty() {
                continue;
            }
            editor.add_history_entry(text)?;
            match self.command(text) {
                Some(true) => return Ok(()),
                Some(false) => {}
                None => self.exchange(text).await?,
            }
        }
    }

    /// Whether a line is a command, and whether it ends the chat.
    fn command(&mut self, text: &str) -> Option<bool> {
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        match name {
            "/exit" | "/quit" => return Some(true),
            "/new" => self.messages.clear(),
            "/think" => self.effort = rest.trim().to_lowercase(),
            "/system" => self.system = Some(rest.to_owned()).filter(|text| !text.is_empty()),
            _ if name.starts_with('/') => eprintln!("{HELP}"),
            _ => return None,
        }
        Some(false)
    }

    /// One question and its answer. What is cancelled or refused is not part of the conversation.
    async fn exchange(&mut self, text: &str) -> Result<()> {
        self.messages.push(json!({"role": "user", "content": text}));
        let ended = tokio::select! {
            ended = self.answer() => ended,
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| Ended::Cancelled).map_err(Into::into),
        };
        match ended {
            Ok(Ended::Whole(message)) => self.messages.push(message),
            Ok(Ended::Cancelled) => {
                self.messages.pop();
                eprintln!("\n[cancelled]");
            }
            // The server may have refused this question only: the chat goes on.
            Err(error) if !self.plain => {
                self.messages.pop();
                eprintln!("{error:#}");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn request(&self) -> Value {
        let system = self
            .system
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        json!({
            "model": self.model, "messages": messages, "stream": true, "stream_options": {"include_usage": true},
            "temperature": self.temperature, "reasoning_effort": self.effort, "max_tokens": self.max_tokens,
        })
    }

    async fn answer(&self) -> Result<Ended> {
        let started = Instant::now();
        let mut stream = self
            .server
            .stream("/v1/chat/completions", &self.request())
            .await?;
        let bar = load::bar("prefill");
        let mut said = Said {
            plain: self.plain,
            ..Said::default()
        };
        while let Some(line) = stream.next().await? {
            match line {
                Line::Comment(text) => progress(&bar, &text),
                Line::Data(event) => {
                    bar.finish_and_clear();
                    said.hear(&event, started)?;
                }
                Line::Done => break,
            }
        }
        said.end(&stream, started)?;
        Ok(Ended::Whole(
            json!({"role": "assistant", "content": said.text, "reasoning_content": said.reasoning}),
        ))
    }
}

fn progress(bar: &ProgressBar, comment: &str) {
    let numbers = comment
        .strip_prefix("prefill ")
        .and_then(|numbers| numbers.split_once('/'));
    if let Some((Ok(done), Ok(total))) = numbers.map(|(done, total)| (done.parse(), total.parse())) {
        bar.set_length(total);
        bar.set_position(done);
    }
}

/// What has been said of an answer.
#[derive(Default)]
struct Said {
    text: String,
    reasoning: String,
    first: Option<Duration>,
    usage: Value,
    plain: bool,
}

impl Said {
    fn hear(&mut self, event: &Value, started: Instant) -> Result<()> {
        if event["usage"].is_object() {
            self.usage = event["usage"].clone();
        }
        let delta = &event["choices"][0]["delta"];
        let mut out = std::io::stdout().lock();
        if let Some(text) = delta["reasoning_content"].as_str() {
            self.first.get_or_insert_with(|| started.elapsed());
            self.reasoning.push_str(text);
            if !self.plain {
                write!(out, "\x1b[2m{text}\x1b[0m")?;
            }
        }
        if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
            self.first.get_or_insert_with(|| started.elapsed());
            if self.text.is_empty() && !self.reasoning.is_empty() && !self.plain {
                writeln!(out, "\n")?;
            }
            self.text.push_str(text);
            write!(out, "{text}")?;
        }
        out.flush()?;
        Ok(())
    }

    fn end(&self, stream: &Stream, started: Instant) -> Result<()> {
        println!();
        if self.plain {
            return Ok(());
        }
        let count = |name: &str| self.usage[name].as_u64().unwrap_or(0);
        let first = self.first.unwrap_or_default();
        let decode = (started.elapsed() - first).as_secs_f64().max(1e-9);
        let completion = count("completion_tokens");
        let rate = completion.saturating_sub(1) as f64 / decode;
        eprintln!(
            "\x1b[2m{} prompt tokens, {}; first token after {:.2} s, {completion} tokens at {rate:.1}/s\x1b[0m",
            count("prompt_tokens"),
            stream.decision,
            first.as_secs_f64(),
        );
        Ok(())
    }
}
