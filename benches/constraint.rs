//! Cost of a constraint per token: the mask, and the advance to the next token, along texts of the built-in model.

use std::hint::black_box;
use std::time::{Duration, Instant};

use burrstone::{Constraint, Engine, Request};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;

fn constraints() -> [(&'static str, Constraint); 4] {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "role": {"enum": ["miller", "baker", "king"]},
            "children": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4}
        },
        "required": ["name", "age", "role", "children"],
        "additionalProperties": false
    });
    let lines = "start: (line \"\\n\")+\nline: WORD (\" \" WORD)*\nWORD: /[A-Za-z]+/";
    [
        ("json_schema", Constraint::JsonSchema(person)),
        ("json_object", Constraint::JsonObject),
        ("regex", Constraint::Regex(r"([A-Z][a-z]+( [a-z]+)*[.] )+".to_owned())),
        ("grammar", Constraint::Grammar(lines.to_owned())),
    ]
}

fn bench(criterion: &mut Criterion) {
    let engine = Engine::builtin().build().expect("the built-in model");
    let words = engine.spec().vocab_size.div_ceil(32);
    let mut group = criterion.benchmark_group("constraint");
    for (name, constraint) in constraints() {
        let start = engine.constraint(&constraint).expect("a constraint");
        let request = Request::text("In the beginning").temperature(1.0).seed(1).max_tokens(200).constraint(constraint);
        let tokens: Vec<u32> =
            engine.generate(request).expect("a request").map(|token| token.expect("a token").id).collect();
        // Each iteration is a token; at the end of the text it starts again, with the caches of a new request.
        for mask in [true, false] {
            group.bench_function(format!("{name}/{}", if mask { "mask" } else { "advance" }), |bencher| {
                bencher.iter_custom(|iterations| {
                    let (mut spent, mut left) = (Duration::ZERO, iterations);
                    while left > 0 {
                        let mut state = start.fork();
                        for &token in tokens.iter().take(left as usize) {
                            let mut allowed = vec![0; words];
                            let began = Instant::now();
                            state.allow(&mut allowed).expect("a mask");
                            let masked = Instant::now();
                            state.advance(token).expect("a step");
                            spent += if mask { masked - began } else { masked.elapsed() };
                            black_box(allowed);
                        }
                        left = left.saturating_sub(tokens.len() as u64);
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
