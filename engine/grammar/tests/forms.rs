//! Whatever the logits are, what comes out keeps to its form: over random schemas and a random "model".

use std::sync::LazyLock;

use ds4_gguf::Gguf;
use ds4_grammar::{Form, Grammars};
use ds4_model::choice::{Chooser, Guide, Shaping};
use ds4_model::sampling::Sampling;
use ds4_synth::{Dims, Preset};
use ds4_tokenizer::dsml::{Piece, Quality, ToolParser};
use ds4_tokenizer::json::Json;
use ds4_tokenizer::{Special, Tokenizer};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).expect("written");
    Tokenizer::from_gguf(&Gguf::open(&path).expect("sound")).expect("a vocabulary")
});
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| Grammars::new(&TOKENIZER).expect("grammars"));

/// What a model without any sense writes in this form, up to the end of its turn.
fn written(form: Form, seed: u64) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let sampling = Sampling {
        temperature: 1.0,
        seed: seed + 1,
        ..Sampling::GREEDY
    };
    let guide: Option<Box<dyn Guide>> = Some(Box::new(form));
    let mut chooser = Chooser::new(
        &sampling,
        Shaping {
            guide,
            ..Shaping::default()
        },
    );
    let (eos, mut decoder, mut text) = (
        TOKENIZER.special(Special::Eos),
        TOKENIZER.decoder(),
        String::new(),
    );
    for _ in 0..20_000 {
        let logits: Vec<f32> = (0..TOKENIZER.vocab_size())
            .map(|_| random.random_range(-4.0..4.0))
            .collect();
        let token = chooser.choose(&logits).expect("a token").token;
        if Some(token) == eos {
            return text + &decoder.finish();
        }
        text.push_str(&decoder.push(token));
    }
    panic!("no end after {text}");
}

fn ordered(value: &Value) -> Json {
    serde_json::from_str(&value.to_string()).expect("sound")
}

/// A schema of bounded size; what it allows is bounded, too, so that a senseless model comes to an end.
fn schema(random: &mut StdRng, depth: usize) -> Value {
    let kinds = if depth == 0 { 6 } else { 10 };
    match random.random_range(0..kinds) {
        0 => {
            json!({"type": "string", "maxLength": random.random_range(1..12), "minLength": random.random_range(0..2)})
        }
        1 => {
            json!({"type": "integer", "minimum": -random.random_range(0..50), "maximum": random.random_range(1..9000)})
        }
        2 => json!({"type": "boolean"}),
        3 => json!({"enum": ["a", "b\"c\n", 3, null, [1, {"k": "é"}]]}),
        4 => json!({"type": "string", "pattern": "^[a-c]{2,4}-[0-9]{1,3}$"}),
        5 => json!({"type": ["null", "boolean"]}),
        6 => {
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": random.random_range(0..2), "maxItems": random.random_range(2..4)})
        }
        7 => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
        _ => object(random, depth),
    }
}

fn object(random: &mut StdRng, depth: usize) -> Value {
    let names = ["z", "a", "with space", "quo\"te", "ключ", "n"];
    let count = random.random_range(0..names.len());
    let mut properties = serde_json::Map::new();
    let mut required = Vec::new();
    for name in &names[..count] {
        properties.insert((*name).to_owned(), schema(random, depth - 1));
        if random.random_bool(0.5) {
            required.push(*name);
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[test]
fn two_hundred_random_schemas_are_kept_to() {
    let mut random = StdRng::seed_from_u64(9);
    for i in 0..200 {
        let schema = if i % 3 == 0 {
            schema(&mut random, 3)
        } else {
            object(&mut random, 3)
        };
        let form = GRAMMARS
            .json(&ordered(&schema))
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
        let text = written(form, i);
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}: {text}: {error}"));
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        assert!(validator.is_valid(&value), "{schema}\n{text}");
    }
}

#[test]
fn forced_calls_are_read_back_and_fit_their_parameters() {
    let mut random = StdRng::seed_from_u64(4);
    for seed in 0..40_u64 {
        let parameters = [object(&mut random, 2), object(&mut random, 2)].map(|mut schema| {
            // Names with quotes cannot be written in a tag.
            if let Some(properties) = schema["properties"].as_object_mut() {
                properties.remove("quo\"te");
            }
            if let Some(required) = schema["required"].as_array_mut() {
                required.retain(|name| name != "quo\"te");
            }
            without_patterns(schema)
        });
        let tools: Vec<Json> = parameters
            .iter()
            .enumerate()
            .map(|(i, schema)| ordered(&json!({"name": format!("tool-{i}"), "parameters": schema})))
            .collect();
        let text = written(
            GRAMMARS
                .calls(&tools.iter().collect::<Vec<_>>(), seed % 2 == 0)
                .expect("a grammar"),
            seed,
        );
        let mut parser = ToolParser::default();
        let mut pieces = parser.push(&text);
        pieces.extend(parser.finish(true));
        assert_eq!(parser.quality(), Quality::Sound, "{text}");
        let mut calls: Vec<(usize, String)> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Begin { name } => calls.push((usize::from(name == "tool-1"), String::new())),
                Piece::Arguments(text) => calls.last_mut().expect("a call").1.push_str(&text),
                Piece::End => {}
                Piece::Text(text) => panic!("{text}"),
            }
        }
        assert!(!calls.is_empty() && (seed % 2 == 0 || calls.len() == 1));
        for (tool, arguments) in calls {
            let value: Value = serde_json::from_str(&arguments).expect(&arguments);
            let schema = &parameters[tool];
            assert!(
                jsonschema::validator_for(schema)
                    .expect("a schema")
                    .is_valid(&value),
                "{schema}\n{arguments}"
            );
        }
    }
}

/// Patterns of text parameters are told to the model and not kept to, so a senseless model would not come to an end.
fn without_patterns(mut schema: Value) -> Value {
    if let Some(properties) = schema["properties"].as_object_mut() {
        let patterned = properties
            .values_mut()
            .filter(|property| property.get("pattern").is_some());
        patterned.for_each(|property| *property = json!({"type": "string", "maxLength": 8}));
    }
    schema
}

#[test]
fn what_cannot_be_kept_to_is_named() {
    for (schema, named) in [
        (json!({"type": "object", "if": {}}), "if"),
        (
            json!({"type": "string", "minLength": 5, "maxLength": 2}),
            "minLength",
        ),
        (json!(3), "expected a JSON schema"),
    ] {
        let error = GRAMMARS.json(&ordered(&schema)).expect_err("refused").to_string();
        assert!(error.contains(named), "{schema}: {error}");
    }
}
