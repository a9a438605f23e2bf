//! Sessions that go on: what a receiver lacks, and the way back.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ds4_gguf::{IndexerConfig, LayerSpan, ModelConfig};
use ds4_model::{
    CompleteKv, Kv, KvError, KvKind, KvLayout, KvStaging, ModelError, ModelSlice, Numerics, TokenHash, stop,
};

use crate::support::{config, empty, graph, run, tokens};

const ALL: LayerSpan = LayerSpan {
    first: 0,
    last: 3,
    head: false,
};
/// Around the edges of ratio 4, ratio 128 and the window of 9.
const FRONTIERS: [usize; 12] = [0, 1, 3, 4, 5, 8, 9, 12, 127, 128, 131, 260];

fn at(slice: &dyn ModelSlice, tokens: &[u32]) -> Kv {
    let mut kv = empty(slice, ALL);
    run(slice, tokens, 64, &mut [&mut kv]);
    kv
}

/// Sends what `base` lacks of `whole`; returns the bytes sent.
fn send(whole: &Kv, base: &mut Kv) -> Result<u64, KvError> {
    let (layout, held) = (whole.layout(), base.frontier());
    let mut staging = KvStaging::onto(base, 1000);
    let mut bytes = 0;
    for layer in ALL.layers() {
        for kind in layout.kinds(layer) {
            let rows = layout.missing_rows(layer, *kind, held, whole.frontier());
            let data = whole.read(layer, *kind, rows.clone())?;
            bytes += data.len() as u64;
            if !rows.is_empty() {
                staging.write(layer, *kind, rows.start, data)?;
            }
        }
    }
    staging.commit_onto(base, whole.frontier(), whole.hash())?;
    Ok(bytes)
}

#[test]
fn a_stopped_pass_computes_no_further_layer_and_its_session_can_go_back() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(260));
    let before = at(&*slice, &tokens[..131]);
    let checkpoint = before.checkpoint();
    let mut kv = before.clone();
    let flag = Arc::new(AtomicBool::new(true));
    let mut hidden = slice.embed(&tokens[131..]).unwrap();
    let untouched = hidden.clone();
    let stopped = stop::until(&flag, || slice.forward(&tokens[131..], &mut hidden, &mut kv));
    assert!(matches!(stopped, Err(ModelError::Stopped)), "{stopped:?}");
    assert_eq!((&hidden, &kv), (&untouched, &before), "not a layer more");
    // In the middle of the layers: those of the first half have come further.
    let half = LayerSpan { last: 1, ..ALL };
    let mut parts = CompleteKv::assemble(before.layout(), vec![kv])
        .unwrap()
        .split(&[half, LayerSpan { first: 2, ..ALL }]);
    slice.forward(&tokens[131..], &mut hidden, &mut parts[0]).unwrap();
    for part in &mut parts {
        part.rewind(&checkpoint).unwrap();
    }
    let back = CompleteKv::assemble(before.layout(), parts).unwrap();
    let whole = CompleteKv::assemble(before.layout(), vec![before.clone()]).unwrap();
    assert_eq!(back.kv(), whole.kv());
}

#[test]
fn a_session_extended_by_what_it_lacked_equals_the_whole_one() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(260));
    let kvs: Vec<Kv> = FRONTIERS
        .iter()
        .map(|frontier| at(&*slice, &tokens[..*frontier]))
        .collect();
    for (i, held) in kvs.iter().enumerate() {
        for whole in &kvs[i + 1..] {
            let mut base = held.clone();
            let sent = send(whole, &mut base).unwrap();
            assert_eq!(base, *whole, "{} to {}", held.frontier(), whole.frontier());
            assert!(
                held.frontier() < 4 || sent < whole.bytes(),
                "rows of whole groups are not sent again"
            );
        }
    }
}

/// The room that was taken for a session is what its rows come into, computed or handed over: none is copied, and no more memory is taken.
#[test]
fn rows_stay_where_they_are_first_written() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(260));
    let whole = at(&*slice, &tokens);
    let mut computed = empty(&*slice, ALL);
    computed.reserve(260);
    let room = computed.allocated();
    run(&*slice, &tokens[..200], 64, &mut [&mut computed]);
    let places = |kv: &Kv| -> Vec<*const u8> {
        let grown = ALL
            .layers()
            .flat_map(|layer| kv.layout().kinds(layer).iter().map(move |kind| (layer, *kind)));
        let grown = grown.filter(|(_, kind)| kind.append_only());
        grown
            .map(|(layer, kind)| kv.read(layer, kind, 0..1).expect("a row").as_ptr())
            .collect()
    };
    let before = places(&computed);
    run(&*slice, &tokens[200..], 64, &mut [&mut computed]);
    assert_eq!(places(&computed), before);
    let mut handed = empty(&*slice, ALL);
    handed.reserve(260);
    send(&whole, &mut handed).expect("sent");
    assert_eq!(handed, computed);
    let small = whole.layout().bytes(ALL.layers(), 260) - grown(&whole);
    assert!(
        handed.allocated() <= room + 2 * small,
        "{} of {room}",
        handed.allocated()
    );
}

/// Bytes of rows that become more with the session.
fn grown(kv: &Kv) -> u64 {
    let kinds = ALL
        .layers()
        .flat_map(|layer| kv.layout().kinds(layer).iter().map(move |kind| (layer, *kind)));
    let bytes = kinds.filter(|(_, kind)| kind.append_only()).map(|(layer, kind)| {
        let rows = kv.rows(layer, kind);
        kv.read(layer, kind, rows).map_or(0, <[u8]>::len) as u64
    });
    bytes.sum()
}

#[test]
fn rows_that_continue_another_frontier_are_refused_and_change_nothing() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(40));
    let (mut short, long) = (at(&*slice, &tokens[..8]), at(&*slice, &tokens[..12]));
    let mut base = long.clone();
    let staging = KvStaging::onto(&mut short, 1000);
    let refused = staging
        .commit_onto(&mut base, 20, TokenHash::default())
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "frontier: expected 8 of layers 0:3, found 12 in the shard of layers 0:3"
    );
    // Nothing came, though there is something between 12 and 20.
    let staging = KvStaging::onto(&mut long.clone(), 1000);
    let refused = staging
        .commit_onto(&mut base, 20, TokenHash::default())
        .unwrap_err();
    assert!(matches!(refused, KvError::Rows { .. }), "{refused}");
    assert_eq!(base, long);
}

#[test]
fn a_session_goes_back_to_a_checkpoint_and_forward_on_another_way() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(260));
    for frontier in FRONTIERS {
        let short = at(&*slice, &tokens[..frontier]);
        let mark = short.checkpoint();
        let mut kv = short.clone();
        run(&*slice, &tokens[..90], 64, &mut [&mut kv]);
        kv.rewind(&mark).unwrap();
        assert_eq!(kv, short, "back to {frontier}");
        let other: Vec<u32> = tokens[..frontier]
            .iter()
            .chain(&tokens[200..220])
            .copied()
            .collect();
        run(&*slice, &other[frontier..], 64, &mut [&mut kv]);
        assert_eq!(kv, at(&*slice, &other), "from {frontier} on another way");
    }
}

#[test]
fn a_checkpoint_ahead_is_refused() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(40));
    let mark = at(&*slice, &tokens).checkpoint();
    let mut kv = at(&*slice, &tokens[..8]);
    let before = kv.clone();
    let refused = kv.rewind(&mark).unwrap_err().to_string();
    assert!(
        refused.starts_with("frontier: expected at least 40, found 8"),
        "{refused}"
    );
    assert_eq!(kv, before);
}

#[test]
fn a_session_taken_apart_goes_together_again() {
    let (slice, tokens) = (graph(Numerics::Canonical), tokens(40));
    let mut whole = CompleteKv::empty(&slice.info().layout);
    run(&*slice, &tokens, 64, &mut [whole.kv_mut()]);
    let spans = [(0, 0), (1, 2), (3, 3)].map(|(first, last)| LayerSpan {
        first,
        last,
        head: false,
    });
    let parts = whole.clone().split(&spans);
    assert_eq!(CompleteKv::assemble(&slice.info().layout, parts).unwrap(), whole);
    let lacking = whole.split(&spans[..2]);
    assert!(CompleteKv::assemble(&slice.info().layout, lacking).is_err());
}

/// The published model's shapes: two layers without compression, then ratio 4 and ratio 128 in turn, to layer 42.
fn flash() -> KvLayout {
    let config = ModelConfig {
        n_layer: 43,
        head_dim: 512,
        n_rot: 64,
        window: 128,
        indexer: IndexerConfig {
            heads: 64,
            dim: 128,
            top_k: 512,
        },
        ratios: (0..43)
            .map(|layer| if layer < 2 { 0 } else { [4, 128][layer % 2] })
            .collect(),
        ..config()
    };
    KvLayout::new(&config, Numerics::Canonical)
}

fn moved(held: u64, frontier: u64) -> u64 {
    let layout = flash();
    let of_kind = |layer: usize, kind: KvKind| {
        let rows = layout.missing_rows(layer, kind, held, frontier);
        (rows.end - rows.start) * layout.row_bytes(layer, kind) as u64
    };
    let of_layer = |layer: usize| {
        layout
            .kinds(layer)
            .iter()
            .map(move |kind| (layer, *kind))
            .collect::<Vec<_>>()
    };
    (0..22)
        .flat_map(of_layer)
        .map(|(layer, kind)| of_kind(layer, kind))
        .sum()
}

/// The reference point is 112,289,000 bytes for layers 0 to 21 of 43 at 15,316 tokens, sent again with every turn.
#[test]
fn a_handoff_of_the_published_model_is_small_and_a_follow_up_much_smaller() {
    let whole = moved(0, 15_316);
    assert_eq!(whole, flash().bytes(0..22, 15_316));
    assert!(whole <= 34_000_000, "{whole}");
    // 200 tokens were decoded; 24 follow. At worst a state of 127 tokens is open.
    let follow_up = (0..128).map(|more| moved(15_516 + more, 15_540 + more)).max();
    assert!(follow_up <= Some(6_000_000), "{follow_up:?}");
}
