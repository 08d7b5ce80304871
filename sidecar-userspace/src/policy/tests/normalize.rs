//! What is compared is what the application gets: whatever spelling a path has.

use proptest::prelude::*;

use crate::policy::{
    PathNormalization as How,
    normalize::{canonical, host, path},
};

const ALL: [How; 4] = [
    How::Base,
    How::MergeSlashes,
    How::DecodeAndMergeSlashes,
    How::Strict,
];

#[test]
fn plain_paths_are_not_copied() {
    for plain in ["/", "/a/b", "/a.b/c..d", "/a/", "/a:b@c"] {
        let normal = path(How::Strict, plain).unwrap();
        assert!(
            matches!(normal.forward, std::borrow::Cow::Borrowed(same) if same == plain),
            "{plain}"
        );
        assert_eq!(normal.compare, plain);
    }
}

#[test]
fn what_is_forwarded() {
    for (how, from, to) in [
        (How::Strict, "/a/../b//c/./d", "/b/c/d"),
        (How::Strict, "/a%2d%7E%c3%a9", "/a-~%C3%A9"),
        (How::Strict, "/a%40b", "/a%40b"),
        (How::Strict, "/..", "/"),
        (How::Strict, "/a/b/..", "/a/"),
        (How::Strict, "/a\\b", "/a/b"),
        (How::Base, "/a//b", "/a//b"),
        (How::Base, "//", "//"),
        (How::Base, "/a//../b", "/a/b"),
        (How::MergeSlashes, "/a;b//c", "/a;b/c"),
        (How::DecodeAndMergeSlashes, "/a%2F%2f%5cb", "/a/b"),
        (How::None, "/a/../b", "/a/../b"),
    ] {
        assert_eq!(path(how, from).unwrap().forward, to, "{from}");
    }
}

/// An application of the plain kind: decodes once, then resolves segments.
fn application(path: &str) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                decoded.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            b'\\' => decoded.push(b'/'),
            byte => decoded.push(byte),
        }
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/' || *byte == b'\\') {
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    kept.iter()
        .flat_map(|segment| [b"/", *segment].concat())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Doing it twice changes nothing, and nothing is left that a second reader could resolve.
    #[test]
    fn once_is_enough(text in "/([a.;/\\\\]|%2[eEfF5]|%5[cC]|%61|%3b|%40|é){0,12}") {
        for how in ALL {
            let Ok(normal) = path(how, &text) else { continue };
            let again = path(how, &normal.forward).unwrap();
            prop_assert_eq!(&again.forward, &normal.forward, "{:?} {}", how, &text);
            prop_assert_eq!(&again.compare, &normal.compare);
            let compare = normal.compare.into_owned();
            prop_assert_eq!(&canonical(&compare), &compare);
            prop_assert!(compare.starts_with('/') && !compare.contains('\\'));
            prop_assert!(compare.split('/').all(|segment| segment != "." && segment != ".."));
            if how != How::Base {
                prop_assert!(!compare.contains("//"), "{}", &compare);
            }
            if how == How::Strict {
                let lower = compare.to_lowercase();
                prop_assert!(!lower.contains("%2f") && !lower.contains("%5c") && !lower.contains(';'));
            }
        }
    }

    /// What the application makes of the path that it gets is what it made of the client's, and what was compared.
    #[test]
    fn the_application_gets_what_was_compared(text in "/([ab./\\\\@]|%2[eEfF]|%5c|%6[12]|%40|é){0,10}") {
        for how in [How::MergeSlashes, How::DecodeAndMergeSlashes, How::Strict] {
            let Ok(normal) = path(how, &text) else { continue };
            prop_assert_eq!(application(&normal.forward), application(&normal.compare), "{}", &text);
            if how == How::Strict {
                prop_assert_eq!(application(&text), application(&normal.forward), "{}", &text);
                let trimmed = normal.compare.trim_end_matches('/');
                prop_assert_eq!(application(&text), application(trimmed));
                // Whatever spelling: it is below /a for the application exactly if it is for the policy.
                let (seen, compared) = (application(&text), normal.compare.as_ref());
                let below = |seen: &[u8]| seen == b"/a" || seen.starts_with(b"/a/");
                prop_assert_eq!(below(&seen), compared == "/a" || compared.starts_with("/a/"));
            }
        }
    }

    #[test]
    fn nothing_panics(text in any::<String>()) {
        for how in ALL {
            let _ = path(how, &text);
            let _ = path(how, &format!("/{text}"));
        }
        let _ = (canonical(&text), host(&text));
    }

    #[test]
    fn hosts_have_one_spelling(name in "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}", port in 1_u16.., dots in 0_usize..3) {
        for spelling in [name.clone(), name.to_uppercase()] {
            let dotted = spelling + &".".repeat(dots);
            prop_assert_eq!(host(&dotted), name.as_str());
            let with_port = format!("{dotted}:{port}");
            prop_assert_eq!(host(&with_port), name.as_str());
        }
    }
}
