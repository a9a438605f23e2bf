//! The same ids as DeepSeek's own tokenizer, on the part of its vocabulary that the texts need (`deepseek/make_vectors.py`).

use std::io::Write;

use ds4_gguf::Gguf;
use ds4_tokenizer::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    /// Original id and text of each token.
    tokens: Vec<(u32, String)>,
    merges: Vec<String>,
    /// A text and its original ids.
    cases: Vec<(String, Vec<u32>)>,
}

/// Without these a vocabulary is refused; no text gives them.
const SPECIALS: [&str; 4] = [
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
];

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A GGUF file of a vocabulary and nothing else: type 8 is a string, 9 an array.
fn gguf(tokens: &[&str], merges: &[&str]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend([0_u64, 3].map(u64::to_le_bytes).concat());
    string(&mut out, "tokenizer.ggml.pre");
    out.extend(8_u32.to_le_bytes());
    string(&mut out, "joyai-llm");
    for (key, values) in [
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.merges", merges),
    ] {
        string(&mut out, key);
        out.extend([9_u32, 8].map(u32::to_le_bytes).concat());
        out.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| string(&mut out, value));
    }
    out
}

#[test]
fn every_text_has_the_ids_of_the_models_own_tokenizer() {
    let vectors: Vectors = serde_json::from_str(include_str!("deepseek/vectors.json")).expect("vectors");
    let mut tokens: Vec<&str> = vectors.tokens.iter().map(|(_, token)| token.as_str()).collect();
    tokens.extend(SPECIALS);
    let merges: Vec<&str> = vectors.merges.iter().map(String::as_str).collect();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(&gguf(&tokens, &merges)).expect("written");
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(file.path()).expect("sound")).expect("a vocabulary");
    assert!(vectors.cases.len() > 400);
    for (text, expected) in &vectors.cases {
        let ids = tokenizer.encode(text);
        let found: Vec<u32> = ids.iter().map(|id| vectors.tokens[*id as usize].0).collect();
        assert_eq!(&found, expected, "{text:?}");
        assert_eq!(&tokenizer.decode(&ids), text);
    }
}
