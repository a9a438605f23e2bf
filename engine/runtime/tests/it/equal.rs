//! The same tokens wherever the prompt was computed.

use ds4_runtime::{Decision, EngineOptions, Policy};

use crate::support::{alone, ask, engine, prompt, stage, strict};

const fn disaggregated(stages: u32) -> Decision {
    Decision::Disaggregated {
        stages,
        retried: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn two_and_three_stages_decode_what_one_process_decodes() {
    let (first, second, both) = (stage(0, 0), stage(1, 1), stage(0, 1));
    let two = engine(2, &[&both], strict()).await;
    let three = engine(2, &[&first, &second], strict()).await;
    for length in [1, 31, 32, 33, 200] {
        let prompt = prompt(length);
        let expected = alone(&prompt).await;
        assert_eq!(
            ask(&two, &prompt).await.unwrap(),
            (disaggregated(1), expected.clone())
        );
        assert_eq!(ask(&three, &prompt).await.unwrap(), (disaggregated(2), expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
pub async fn the_policy_decides_and_says_why() {
    let stage = stage(0, 1);
    let options = EngineOptions {
        policy: Policy::Adaptive,
        min_prompt_tokens: 20,
        ..strict()
    };
    let engine = engine(2, &[&stage], options).await;
    let (decision, _) = ask(&engine, &prompt(19)).await.unwrap();
    let reason = "19 prompt tokens are fewer than 20".into();
    assert_eq!(decision, Decision::Local { reason });
    // Not a continuation of the other: 20 tokens are new.
    let other: Vec<u32> = prompt(21)[1..].to_vec();
    assert_eq!(ask(&engine, &other).await.unwrap().0.label(), "disaggregated");
}
