//! Decoding with guesses: the tokens, what is told of them and the session are those of decoding without.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_kernels_cpu::Cpu;
use ds4_model::choice::{Logprobs, Shaping};
use ds4_model::sampling::Sampling;
use ds4_model::{Drafter, Graph, Hidden, Kv, ModelError, ModelSlice, Numerics, Part, SliceInfo};
use ds4_runtime::{Engine, EngineOptions, Event, Finished, Generate, Guesses, SessionStore};
use ds4_synth::{Dims, Preset};

use crate::support::{finished, prompt, request};

/// Tokens of an answer: over several groups of 4 and past the next multiple of 128 of the prompts here, and fewer events than may wait for a slow
/// reader, since an answer that waits does not guess.
const ANSWER: u32 = 56;

/// Two shapes: with and without layers of each kind at the ends, other windows, other sizes.
fn shapes() -> [Dims; 2] {
    let micro = Dims {
        mtp: true,
        ..Dims::preset(Preset::Micro)
    };
    let other = Dims {
        n_layer: 4,
        ratios: vec![4, 128, 0, 4],
        n_vocab: 300,
        head_dim: 128,
        n_rot: 64,
        n_swa: 13,
        n_expert: 6,
        seed: 11,
        ..micro.clone()
    };
    [micro, other]
}

/// A model of that shape, and the same one with its draft head.
fn models(dims: &Dims) -> (Arc<dyn ModelSlice>, Arc<dyn ModelSlice>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    ds4_synth::write(&path, dims, &mut |_, _| {}).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let n_layer = ModelConfig::from_gguf(&gguf).unwrap().n_layer;
    let load = || {
        let cpu = Cpu::new(Some(1), None).unwrap();
        Graph::load(
            &gguf,
            LayerSpan::full(n_layer),
            Numerics::Canonical,
            cpu,
            &mut |_, _| {},
        )
        .unwrap()
    };
    let with = load().with_draft(&gguf, &mut |_, _| {}).unwrap();
    (Arc::new(load()), Arc::new(with))
}

/// Knows the answer, and guesses right when `right` says so of the token's number in it. Keeps what it was told.
struct Knowing {
    slice: Arc<dyn ModelSlice>,
    /// Prompt and answer, and the streams of each token.
    all: Vec<u32>,
    streams: Arc<Hidden>,
    prompt: usize,
    right: fn(usize) -> bool,
    /// Positions of the tokens that came, each with the streams before it.
    told: Mutex<Vec<usize>>,
}

impl Knowing {
    /// Knows what follows `prompt`.
    fn new(slice: &Arc<dyn ModelSlice>, prompt: &[u32], answer: &[u32]) -> Self {
        let all = [prompt, answer].concat();
        let mut streams = slice.embed(&all).unwrap();
        let mut kv = Kv::new(&slice.info().layout, slice.info().span);
        slice.forward(&all, &mut streams, &mut kv).unwrap();
        Self {
            slice: Arc::clone(slice),
            all,
            streams: Arc::new(streams),
            prompt: prompt.len(),
            right: |_| true,
            told: Mutex::default(),
        }
    }

    /// The same head, guessing right where `right` says so.
    fn guessing(&self, right: fn(usize) -> bool) -> Arc<Self> {
        Arc::new(Self {
            slice: Arc::clone(&self.slice),
            all: self.all.clone(),
            streams: Arc::clone(&self.streams),
            prompt: self.prompt,
            right,
            told: Mutex::default(),
        })
    }
}

impl ModelSlice for Knowing {
    fn info(&self) -> &SliceInfo {
        self.slice.info()
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.slice.embed(tokens)
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.slice.forward_batch(parts, hidden)
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.slice.logits_batch(hidden, tokens)
    }

    fn drafter(&self) -> Option<&dyn Drafter> {
        Some(self)
    }
}

impl Drafter for Knowing {
    fn empty(&self) -> Kv {
        Kv::new(&self.slice.info().layout, LayerSpan::full(1))
    }

    fn window(&self) -> usize {
        10
    }

    fn draft(&self, _: &mut Kv, tokens: &[u32], hidden: &Hidden) -> Result<u32, ModelError> {
        assert_eq!(tokens.len(), hidden.tokens());
        let mut told = self.told.lock().unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let mut positions = 1..self.all.len();
            let is_here = |at: &usize| self.streams.token(at - 1) == hidden.token(i);
            let at = positions.find(is_here).expect("streams of the session");
            assert_eq!(self.all[at], *token, "the token after those streams");
            told.push(at);
        }
        let next = told.last().unwrap() + 1;
        let truth = self.all.get(next).copied().unwrap_or(0);
        let right = (self.right)(next - self.prompt);
        Ok(if right { truth } else { (truth + 1) % 250 })
    }
}

/// What a request gave and left.
#[derive(Debug, PartialEq)]
struct Gave {
    tokens: Vec<u32>,
    logprobs: Vec<Logprobs>,
    reason: String,
    /// The bytes of its session's file.
    session: Vec<u8>,
}

/// Asks an engine of its own, which saves the session at its end.
async fn ask(slice: &Arc<dyn ModelSlice>, request: Generate, eos: &[u32]) -> (Gave, Guesses) {
    let folder = tempfile::tempdir().unwrap();
    let store = SessionStore::open(folder.path(), 1 << 30, slice.info()).unwrap();
    let options = EngineOptions {
        eos: eos.to_vec(),
        store: Some(Arc::new(store)),
        ..EngineOptions::default()
    };
    let own = slice.info().span;
    let engine = Engine::new(Arc::clone(slice), own, Vec::new(), options);
    let mut generation = engine.generate(request);
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    let Finished { reason, guesses, .. } = loop {
        match generation.next().await.unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Logprobs(told) => {
                assert_eq!(logprobs.len(), tokens.len(), "told before its token");
                logprobs.push(told);
            }
            Event::Finished(finished) => break finished,
            Event::Failed(error) => panic!("{error}"),
            Event::Prefill { .. } | Event::Cached(_) | Event::Decided(_) => {}
        }
    };
    engine.shutdown().await;
    let gave = Gave {
        tokens,
        logprobs,
        reason: format!("{reason:?}"),
        session: session(folder.path()),
    };
    (gave, guesses)
}

fn session(folder: &Path) -> Vec<u8> {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    std::fs::read(files[0].as_ref().unwrap().path()).unwrap()
}

/// A request for the answer to a prompt.
type Make = fn(Vec<u32>) -> Generate;

/// Prompts' lengths and how they are asked. Greedy; sampled; and sampled with all that a request may want of the choice, of which more events come.
fn requests() -> [(usize, Make); 3] {
    const SAMPLED: Sampling = Sampling {
        temperature: 0.9,
        top_p: 0.95,
        seed: 5,
        ..Sampling::GREEDY
    };
    let greedy = |prompt| Generate {
        max_tokens: ANSWER,
        ..request(prompt)
    };
    let sampled = |prompt| Generate {
        sampling: SAMPLED,
        max_tokens: ANSWER,
        ..request(prompt)
    };
    let shaped = |prompt| Generate {
        sampling: SAMPLED,
        shaping: Shaping {
            bias: vec![(7, 1.5)],
            frequency_penalty: 0.2,
            logprobs: Some(2),
            ..Shaping::default()
        },
        max_tokens: ANSWER / 2,
        ..request(prompt)
    };
    [(220, greedy), (207, sampled), (236, shaped)]
}

/// What is guessed of an answer of so many tokens. The first one needs no pass, and of the last one nothing is guessed beyond.
fn expected_guesses(tokens: usize, right: fn(usize) -> bool) -> Guesses {
    let (mut guesses, mut told) = (Guesses::default(), 1);
    while told + 2 <= tokens {
        guesses.tried += 1;
        guesses.right += u32::from(right(told));
        told += 1 + usize::from(right(told));
    }
    guesses
}

#[tokio::test(flavor = "multi_thread")]
pub async fn whatever_is_guessed_the_answer_and_the_session_are_the_same() {
    let patterns: [fn(usize) -> bool; 4] = [|_| true, |_| false, |i| i % 3 == 0, |i| i % 5 < 3];
    for dims in shapes() {
        let (plain, with) = models(&dims);
        for (length, make) in requests() {
            let (expected, none) = ask(&plain, make(prompt(length)), &[]).await;
            let count = expected.tokens.len();
            assert_eq!(
                (none, count),
                (Guesses::default(), make(vec![]).max_tokens as usize)
            );
            let (found, guesses) = ask(&with, make(prompt(length)), &[]).await;
            assert_eq!(found, expected, "the head of the file");
            assert!(guesses.tried as usize > count / 3, "{guesses:?}");
            let knowing = Knowing::new(&plain, &prompt(length), &expected.tokens);
            for right in patterns {
                let slice: Arc<dyn ModelSlice> = knowing.guessing(right);
                let (found, guesses) = ask(&slice, make(prompt(length)), &[]).await;
                assert_eq!(found, expected, "a head that knows");
                assert_eq!(guesses, expected_guesses(count, right));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn the_head_is_told_every_token_with_the_streams_before_it_once() {
    let (plain, _) = models(&shapes()[0]);
    let (_, make) = requests()[0];
    let (expected, _) = ask(&plain, make(prompt(300)), &[]).await;
    let knowing = Knowing::new(&plain, &prompt(300), &expected.tokens).guessing(|i| i % 3 == 0);
    let slice: Arc<dyn ModelSlice> = knowing.clone();
    ask(&slice, make(prompt(300)), &[]).await;
    // Of the prompt, as many as its window holds beside the first token of the answer.
    let told = knowing.told.lock().unwrap();
    let first = 300 + 1 - knowing.window();
    assert_eq!(*told, (first..first + told.len()).collect::<Vec<_>>());
    assert!(told.len() > 60, "{}", told.len());
}

#[tokio::test(flavor = "multi_thread")]
pub async fn an_answer_that_ends_with_a_right_guess_leaves_its_last_token_uncomputed() {
    let (plain, _) = models(&shapes()[0]);
    let make = |eos: bool, max_tokens| Generate {
        ignore_eos: !eos,
        max_tokens,
        ..request(prompt(260))
    };
    let (whole, _) = ask(&plain, make(false, 40), &[]).await;
    // A token that is not in the answer before.
    let end = (5..39)
        .find(|at| !whole.tokens[..*at].contains(&whole.tokens[*at]))
        .unwrap();
    let eos = [whole.tokens[end]];
    let (expected, _) = ask(&plain, make(true, 40), &eos).await;
    assert_eq!((expected.tokens.len(), expected.reason.as_str()), (end, "Stop"));
    let knowing = Knowing::new(&plain, &prompt(260), &whole.tokens);
    for right in [|_| true, |i| i % 2 == 0, |i| i % 2 == 1] as [fn(usize) -> bool; 3] {
        let slice: Arc<dyn ModelSlice> = knowing.guessing(right);
        assert_eq!(ask(&slice, make(true, 40), &eos).await.0, expected);
    }
    for most in 1..6 {
        let (expected, _) = ask(&plain, make(false, most), &[]).await;
        let slice: Arc<dyn ModelSlice> = knowing.guessing(|_| true);
        assert_eq!(
            ask(&slice, make(false, most), &[]).await.0,
            expected,
            "{most} tokens"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn answers_beside_each_other_are_those_of_each_alone() {
    let (plain, with) = models(&shapes()[1]);
    let own = plain.info().span;
    let asked = |length: usize, max_tokens| Generate {
        max_tokens,
        ..request(prompt(length))
    };
    let both = [(260, 90), (40, 12), (300, 30)];
    let mut expected = Vec::new();
    for (length, most) in both {
        let engine = Engine::new(Arc::clone(&plain), own, Vec::new(), EngineOptions::default());
        expected.push(finished(engine.generate(asked(length, most))).await.unwrap().1);
    }
    let engine = Engine::new(with, own, Vec::new(), EngineOptions::default());
    let running: Vec<_> = both
        .map(|(length, most)| engine.generate(asked(length, most)))
        .into();
    let mut guessed = 0;
    for (generation, expected) in running.into_iter().zip(expected) {
        let (_, tokens, end) = finished(generation).await.unwrap();
        assert_eq!(tokens, expected);
        guessed += end.guesses.tried;
    }
    assert!(guessed > 0, "the longest one ends alone");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_prompt_does_not_wait_for_an_answer_that_guesses() {
    let (_, with) = models(&shapes()[0]);
    let own = with.info().span;
    let engine = Engine::new(with, own, Vec::new(), EngineOptions::default());
    let mut long = engine.generate(Generate {
        max_tokens: 800,
        ..request(prompt(30))
    });
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let reader = tokio::spawn(async move {
        let mut begun = Some(begun);
        loop {
            match long.next().await.unwrap() {
                Event::Token(_) if counted.fetch_add(1, Ordering::Relaxed) == 10 => {
                    begun.take().map(|begun| begun.send(()));
                }
                Event::Finished(finished) => break finished.guesses,
                _ => {}
            }
        }
    });
    has_begun.await.unwrap();
    finished(engine.generate(request(vec![5, 6, 7]))).await.unwrap();
    assert!(told.load(Ordering::Relaxed) < 800, "the long answer goes on");
    assert!(reader.await.unwrap().tried > 300);
}

/// A head that fails.
struct Failing(Arc<dyn ModelSlice>);

impl ModelSlice for Failing {
    fn info(&self) -> &SliceInfo {
        self.0.info()
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.0.embed(tokens)
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.0.forward_batch(parts, hidden)
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.0.logits_batch(hidden, tokens)
    }

    fn drafter(&self) -> Option<&dyn Drafter> {
        Some(self)
    }
}

impl Drafter for Failing {
    fn empty(&self) -> Kv {
        Kv::new(&self.0.info().layout, LayerSpan::full(1))
    }

    fn window(&self) -> usize {
        1
    }

    fn draft(&self, _: &mut Kv, _: &[u32], _: &Hidden) -> Result<u32, ModelError> {
        Err(self.0.info().lacks("a guess"))
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_head_that_fails_fails_the_request_and_is_not_passed_over() {
    let slice: Arc<dyn ModelSlice> = Arc::new(Failing(crate::support::whole()));
    let engine = Engine::new(
        Arc::clone(&slice),
        slice.info().span,
        Vec::new(),
        EngineOptions::default(),
    );
    let error = finished(engine.generate(request(prompt(20)))).await.unwrap_err();
    assert!(error.to_string().contains("layers a guess"), "{error}");
    assert_eq!(
        engine.status().cached_sessions,
        0,
        "a session that may stand anywhere is not kept"
    );
}
