//! `generate_guidance.py` wrote what is expected here.
#![cfg(feature = "builtin-model")]

use burrstone::{DType, Device, Engine, Guidance, Prompt, Request};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    negative: Option<Vec<u32>>,
    scale: f32,
    tokens: Vec<u32>,
}

#[test]
fn issue_15839_guidance_chooses_the_same_tokens() {
    let engine = Engine::builtin().device(Device::Cpu).dtype(Some(DType::F32)).build().unwrap();
    let cases: Vec<Case> = serde_json::from_str(include_str!("guidance.json")).unwrap();
    let request = |case: &Case| {
        let negative_prompt = case.negative.clone().map(Prompt::Tokens);
        let request = Request::tokens(case.prompt.clone()).temperature(0.0);
        let len = case.tokens.len();
        request.max_tokens(len).min_tokens(len).guidance(Guidance { scale: case.scale, negative_prompt })
    };
    // All at a time.
    let asked: Vec<_> = cases.iter().map(|case| engine.generate(request(case)).unwrap()).collect();
    for (case, generation) in cases.iter().zip(asked) {
        let tokens: Vec<u32> = generation.map(|token| token.unwrap().id).collect();
        assert_eq!(tokens, case.tokens, "{:?}", case.prompt);
    }
}
