use burrstone::text::StopMatcher;
use proptest::prelude::*;

/// The definition: the first stop string to be complete, the longest if there are several.
fn naive<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
    for end in 0..=text.len() {
        let complete = |stop: &&String| text.as_bytes()[..end].ends_with(stop.as_bytes());
        if let Some(length) = stops.iter().filter(complete).map(String::len).max() {
            return (&text[..end - length], true);
        }
    }
    (text, false)
}

/// The output for these pieces: the text shown after each piece, the whole text, and whether it stopped.
fn streamed(pieces: &[String], stops: &[String]) -> (Vec<String>, String, bool) {
    let mut matcher = StopMatcher::new(stops).unwrap();
    let (mut so_far, mut text, mut stopped) = (Vec::new(), String::new(), false);
    for piece in pieces {
        let step = matcher.push(piece);
        assert!(!stopped || step.text.is_empty(), "text after the stop");
        text.push_str(&step.text);
        stopped = step.stopped;
        so_far.push(text.clone());
    }
    text.push_str(&matcher.finish());
    (so_far, text, stopped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Few letters, so that borders, overlaps and simultaneous matches are common.
    #[test]
    fn agrees_with_a_search_of_the_whole_text(
        pieces in prop::collection::vec("[abé]{0,4}", 0..12),
        stops in prop::collection::vec("[abé]{1,5}", 0..4),
    ) {
        let whole = pieces.concat();
        let (so_far, text, stopped) = streamed(&pieces, &stops);
        let (expected, expected_stop) = naive(&whole, &stops);
        prop_assert_eq!(&text, expected);
        prop_assert_eq!(stopped, expected_stop);

        // Text is held back only if it begins a stop string.
        let mut seen = String::new();
        for (piece, out) in pieces.iter().zip(&so_far) {
            seen.push_str(piece);
            if naive(&seen, &stops).1 {
                break;
            }
            let held = seen.strip_prefix(out.as_str()).unwrap();
            prop_assert!(held.is_empty() || stops.iter().any(|s| s.starts_with(held)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Upper-case letters stand for special tokens: stop strings that contain one are searched in the whole text,
    /// others in the text without special tokens.
    #[test]
    fn special_tokens_are_seen_by_the_strings_that_spell_them(
        pieces in prop::collection::vec("[ab]{1,3}|[AB]", 0..12),
        stops in prop::collection::vec("[abAB]{1,4}", 1..4),
    ) {
        let is_special = |text: &str| text.contains(['A', 'B']);
        let mut matcher = StopMatcher::new(&stops).unwrap().with_special(is_special);
        let (mut text, mut stopped) = (String::new(), false);
        for piece in &pieces {
            let step = if is_special(piece) { matcher.push_special(piece) } else { matcher.push(piece) };
            text.push_str(&step.text);
            stopped = step.stopped;
        }
        text.push_str(&matcher.finish());

        let whole = pieces.concat();
        let shown = |part: &str| part.replace(['A', 'B'], "");
        let ending = (1..=whole.len()).find_map(|end| {
            let complete = |stop: &&String| match is_special(stop) {
                true => whole[..end].ends_with(stop.as_str()),
                false => !is_special(&whole[end - 1..end]) && shown(&whole[..end]).ends_with(stop.as_str()),
            };
            let stop = stops.iter().filter(complete).max_by_key(|stop| stop.len())?;
            let before = shown(&whole[..end]);
            Some(before[..before.len() - shown(stop).len()].to_owned())
        });
        prop_assert_eq!(stopped, ending.is_some());
        prop_assert_eq!(text, ending.unwrap_or_else(|| shown(&whole)));
    }
}

#[test]
fn a_stop_string_across_token_borders_is_never_shown() {
    let pieces = ["Hello ", "#", "#", " End"].map(str::to_owned);
    let (so_far, text, stopped) = streamed(&pieces, &["## ".to_owned()]);
    assert_eq!(so_far, ["Hello ", "Hello ", "Hello ", "Hello "]);
    assert_eq!((text.as_str(), stopped), ("Hello ", true));
}

#[test]
fn an_unfinished_stop_string_is_shown_at_the_end() {
    let pieces = ["a#", "#"].map(str::to_owned);
    assert_eq!(streamed(&pieces, &["## ".to_owned()]).1, "a##");
}

#[test]
fn an_empty_stop_string_is_refused() {
    let error = StopMatcher::new(&[String::new()]).unwrap_err();
    assert_eq!(error.to_string(), "stop: expected strings that are not empty, found an empty one");
    assert!(error.is_input());
}
