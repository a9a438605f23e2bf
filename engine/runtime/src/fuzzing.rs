//! What a stranger's bytes reach first, as functions of bytes alone: fed by the targets in `fuzz/`, and by a short run among the tests.
//!
//! Random bytes do not get past a checksum, so the first byte of an input says whether checksums are made right before they are checked.

use bytes::Bytes;
use ds4_gguf::{HyperConfig, IndexerConfig, LayerSpan, ModelConfig, RopeConfig};
use ds4_model::{Kv, KvLayout, KvStaging, Numerics, TokenHash};
use ds4_proto::v1::{Commit, Description, HandoffFrame, handoff_frame::Frame};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::describe::compatible;
use crate::frames::{self, Receiver};
use crate::route::tiles;
use crate::stage::shares;
use crate::store::{Owner, file};

/// Tokens of the sessions that are received.
const TOKENS: u64 = 40;
const LAYERS: usize = 3;

/// A layer of each compression, rows of the smallest size.
fn layout() -> KvLayout {
    let config = ModelConfig {
        name: "fuzzing".into(),
        n_layer: LAYERS,
        n_embd: 256,
        n_vocab: 280,
        n_head: 4,
        head_dim: 96,
        n_rot: 32,
        q_lora: 32,
        o_lora: 32,
        o_groups: 2,
        n_expert: 4,
        n_used: 2,
        n_ff: 256,
        n_hash: 1,
        window: 4,
        indexer: IndexerConfig {
            heads: 16,
            dim: 32,
            top_k: 8,
        },
        hc: HyperConfig {
            streams: 4,
            sinkhorn_iterations: 20,
            eps: 1e-6,
        },
        ratios: vec![0, 4, 128],
        clamp: vec![3.0; LAYERS],
        rms_eps: 1e-6,
        rope: RopeConfig {
            base: 1e4,
            compress_base: 1.6e5,
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 256,
        },
        expert_scale: 1.5,
        context_length: 4096,
    };
    KvLayout::new(&config, Numerics::Canonical)
}

const fn span() -> LayerSpan {
    LayerSpan {
        first: 0,
        last: LAYERS - 1,
        head: false,
    }
}

fn prompt() -> TokenHash {
    TokenHash::of(&(0..40).collect::<Vec<u32>>())
}

/// One handoff: messages, each after its length in two bytes. What is committed must be a whole session.
///
/// # Panics
/// When it is not.
pub fn kv_frames(input: &[u8]) {
    let Some((mode, mut rest)) = input.split_first() else {
        return;
    };
    let repair = mode & 1 == 1;
    let layout = layout();
    let mut receiver = Receiver::new(7, KvStaging::new(&layout, span(), TOKENS));
    let mut digest = Sha256::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (message, after) = after.split_at(after.len().min(usize::from(u16::from_le_bytes(*length))));
        rest = after;
        match HandoffFrame::decode(message)
            .ok()
            .and_then(|message| message.frame)
        {
            Some(Frame::Rows(mut rows)) => {
                if repair {
                    rows.crc32c = crc_fast::crc32_iscsi(&rows.data);
                }
                if receiver.rows(&rows, &rows.data.clone().into()).is_err() {
                    return;
                }
                frames::digest(&mut digest, &rows);
            }
            Some(Frame::Commit(commit)) => {
                let commit = if repair {
                    repaired(commit, &receiver, digest)
                } else {
                    commit
                };
                return committed(receiver, &commit, &layout);
            }
            Some(Frame::Beat(_)) | None => {}
        }
    }
}

/// The commit with what a sender of these very frames would say of them.
fn repaired(commit: Commit, receiver: &Receiver, digest: Sha256) -> Commit {
    Commit {
        frames: receiver.frames,
        bytes: receiver.bytes,
        token_hash: prompt().value(),
        digest: Bytes::copy_from_slice(&digest.finalize()),
        ..commit
    }
}

fn committed(receiver: Receiver, commit: &Commit, layout: &KvLayout) {
    let mut base = Kv::new(layout, span());
    if receiver.commit(commit, &mut base, TOKENS, prompt()).is_err() {
        assert_eq!(base, Kv::new(layout, span()), "a refused shard left something");
        return;
    }
    assert_eq!((base.frontier(), base.hash()), (TOKENS, prompt()));
    for layer in span().layers() {
        for kind in layout.kinds(layer) {
            let (expected, found) = (
                layout.expected_rows(layer, *kind, TOKENS),
                base.rows(layer, *kind),
            );
            assert!(
                expected == found || expected.is_empty() && found.is_empty(),
                "{kind} of {layer}: {expected:?}, {found:?}"
            );
        }
    }
}

/// A session file. One that is read is written and read again as the same session.
///
/// # Panics
/// When it is another one.
pub fn session_file(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if let (1, Some((body, checksum))) = (mode & 1, bytes.split_last_chunk_mut::<32>()) {
        checksum.copy_from_slice(&Sha256::digest(body));
    }
    let owner = owner();
    let Ok((tokens, kv)) = file::read(&bytes[..], bytes.len() as u64, &owner) else {
        return;
    };
    let mut again = Vec::new();
    assert!(
        file::write(&mut again, &owner, &tokens, &kv).is_ok(),
        "written to memory"
    );
    let read = file::read(&again[..], again.len() as u64, &owner).ok();
    assert_eq!(read, Some((tokens, kv)), "another session than was written");
}

fn owner() -> Owner {
    Owner {
        fingerprint: "f".into(),
        layout: layout(),
    }
}

/// A stage's description. One that is accepted has the layers that it should have, and they can be shared out.
///
/// # Panics
/// When it has not.
pub fn describe(input: &[u8]) {
    let Ok(theirs) = Description::decode(input) else {
        return;
    };
    if compatible(&described(), &theirs).is_err() {
        return;
    }
    let offered = LayerSpan {
        first: theirs.first as usize,
        last: theirs.last as usize,
        head: false,
    };
    let own = LayerSpan {
        first: 2,
        last: LAYERS - 1,
        head: true,
    };
    if tiles([("stage", offered)], own).is_err() {
        return;
    }
    assert_eq!((offered.first, offered.last), (0, 1));
    let shared: usize = shares(offered, 16)
        .iter()
        .map(|share| share.layers().count())
        .sum();
    assert_eq!(shared, 2);
}

fn described() -> Description {
    Description {
        protocol: ds4_proto::PROTOCOL,
        fingerprint: "f".into(),
        layers: 3,
        last: 1,
        kv_layout: "kv1".into(),
        numerics: "canonical".into(),
        build: "b".into(),
        ..Description::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::frames::{Sender, Work};
    use ds4_model::CompleteKv;

    /// A target by its name, and an input that it accepts.
    type Seed = (&'static str, fn(&[u8]), Vec<u8>);

    /// Mutations of each input of the corpus.
    const ROUNDS: u64 = 60;

    /// A byte that is a number as a code, as a scale, in a half and in a float.
    const NUMBER: u8 = 0x6c;

    fn session() -> CompleteKv {
        let layout = layout();
        let mut staging = KvStaging::new(&layout, span(), TOKENS);
        for layer in span().layers() {
            for kind in layout.kinds(layer) {
                let rows = layout.expected_rows(layer, *kind, TOKENS);
                let bytes = (rows.end - rows.start) * layout.row_bytes(layer, *kind) as u64;
                let bytes = vec![NUMBER; usize::try_from(bytes).expect("small")];
                staging.write(layer, *kind, rows.start, &bytes).expect("rows");
            }
        }
        let kv = staging.commit(TOKENS, prompt()).expect("whole");
        CompleteKv::assemble(&layout, vec![kv]).expect("all layers")
    }

    /// Inputs that are accepted: where the search begins.
    fn seeds() -> [Seed; 3] {
        let kv = session();
        let mut sender = Sender::new(7, span(), 0, TOKENS, 200);
        let mut handoff = vec![1];
        let frames = std::iter::from_fn(|| sender.next(kv.kv())).collect::<Vec<_>>();
        let work = Work {
            compute: std::time::Duration::from_micros(5),
            last_chunk: tokio::time::Instant::now(),
            tail_bytes: 3,
        };
        for frame in frames
            .into_iter()
            .chain([sender.commit(kv.kv(), &work, "span".into())])
        {
            let bytes = frame.decoded().encode_to_vec();
            handoff.extend(u16::try_from(bytes.len()).expect("small").to_le_bytes());
            handoff.extend(bytes);
        }
        let mut file = vec![0];
        file::write(&mut file, &owner(), &(0..40).collect::<Vec<_>>(), &kv).expect("memory");
        [
            ("kv_frames", kv_frames, handoff),
            ("session_file", session_file, file),
            ("describe", describe, described().encode_to_vec()),
        ]
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files = fs::read_dir(folder).expect("a corpus");
        let mut paths: Vec<_> = files.map(|file| file.expect("listed").path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).expect("a file")).collect()
    }

    /// One change: a byte, a cut, a piece twice, or a piece of another input.
    fn mutated(input: &[u8], other: &[u8], state: &mut u64) -> Vec<u8> {
        let mut next = |below: usize| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*state >> 33) as usize % below.max(1)
        };
        let mut bytes = input.to_vec();
        let at = next(bytes.len());
        match next(4) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << next(8),
            1 => bytes.truncate(at),
            2 => bytes.extend_from_within(at..),
            _ => bytes
                .splice(at.., other[next(other.len())..].iter().copied())
                .for_each(drop),
        }
        bytes
    }

    #[test]
    fn what_was_found_before_and_changes_of_it_do_no_harm() {
        for (name, target, seed) in seeds() {
            let inputs: Vec<_> = corpus(name).into_iter().chain([seed]).collect();
            assert!(inputs.len() > 1, "{name}: no corpus");
            let mut state = 1;
            for (i, input) in inputs.iter().enumerate() {
                target(input);
                for _ in 0..ROUNDS {
                    target(&mutated(input, &inputs[(i + 1) % inputs.len()], &mut state));
                }
            }
        }
    }

    #[test]
    fn the_seeds_are_accepted_so_the_search_begins_behind_every_check() {
        let [(_, _, handoff), (_, _, file), (_, _, described_bytes)] = seeds();
        let layout = layout();
        let mut receiver = Receiver::new(7, KvStaging::new(&layout, span(), TOKENS));
        let mut rest = &handoff[1..];
        let mut accepted = false;
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let (message, after) = after.split_at(usize::from(u16::from_le_bytes(*length)));
            rest = after;
            match HandoffFrame::decode(message).expect("ours").frame {
                Some(Frame::Rows(rows)) => receiver.rows(&rows, &rows.data.clone().into()).expect("sound"),
                Some(Frame::Commit(commit)) => {
                    let mut base = Kv::new(&layout, span());
                    receiver
                        .commit(&commit, &mut base, TOKENS, prompt())
                        .expect("sound");
                    accepted = true;
                    break;
                }
                _ => panic!("neither rows nor a commit"),
            }
        }
        assert!(accepted);
        assert!(file::read(&file[1..], file.len() as u64 - 1, &owner()).is_ok());
        let theirs = Description::decode(&described_bytes[..]).expect("ours");
        assert_eq!(compatible(&described(), &theirs), Ok(()));
    }

    /// `cargo test -p ds4-runtime --lib fuzzing -- --ignored` writes the seeds anew, after a change of the formats.
    #[test]
    #[ignore = "writes into the repository"]
    fn write_the_seeds() {
        for (name, _, seed) in seeds() {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/corpus")
                .join(name);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join("seed"), seed).expect("a file");
        }
    }
}
