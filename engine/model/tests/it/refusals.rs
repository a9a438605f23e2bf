//! What the model does not compute, and that nothing changes then.

use ds4_gguf::LayerSpan;
use ds4_model::{Hidden, Kv, KvLayout, ModelError, ModelSlice, Numerics};

use crate::support::{config, empty, graph, load};

#[test]
fn a_token_outside_the_vocabulary_is_named() {
    let slice = graph(Numerics::Canonical);
    let error = slice.embed(&[3, 96]).unwrap_err();
    assert_eq!(error.to_string(), "token 1: expected an id below 96, found 96");
}

#[test]
fn hidden_states_of_another_shape_change_nothing() {
    let slice = graph(Numerics::Canonical);
    let mut kv = empty(&*slice, LayerSpan::full(4));
    let mut hidden = slice.embed(&[1, 2]).unwrap();
    let error = slice.forward(&[1, 2, 3], &mut hidden, &mut kv).unwrap_err();
    assert!(
        matches!(
            error,
            ModelError::Hidden {
                expected: 3072,
                found: 2048,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(kv, empty(&*slice, LayerSpan::full(4)));
    assert!(Hidden::from_vec(1024, vec![0.0; 1000]).is_none());
}

#[test]
fn kv_of_other_numerics_or_layers_is_refused() {
    let slice = load(
        LayerSpan {
            first: 1,
            last: 2,
            head: false,
        },
        Numerics::Canonical,
    );
    let mut hidden = Hidden::from_vec(1024, vec![0.1; 1024]).unwrap();
    let span = LayerSpan {
        first: 1,
        last: 2,
        head: false,
    };
    let mut other = Kv::new(&KvLayout::new(&config(), Numerics::Reference), span);
    assert!(slice.forward(&[1], &mut hidden, &mut other).is_err());
    let mut more = empty(
        &slice,
        LayerSpan {
            first: 0,
            last: 2,
            head: false,
        },
    );
    let error = slice.forward(&[1], &mut hidden, &mut more).unwrap_err();
    assert_eq!(
        error.to_string(),
        "layers 0:2: expected them within 1:2 of this slice"
    );
    assert!(slice.forward(&[1], &mut hidden, &mut empty(&slice, span)).is_ok());
}
