//! What the test runners' closing lines say, added up.

/// Counts of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
}

impl Counts {
    /// Adds what `line` says, if it is a closing line of nextest or of cargo's own runner.
    pub fn read(&mut self, line: &str) {
        let line = without_colours(line);
        let told = if line.trim_start().starts_with("Summary [") {
            line.split_once("run: ").map(|(_, told)| told)
        } else {
            line.strip_prefix("test result: ")
                .and_then(|told| told.split_once(". "))
                .map(|(_, told)| told)
        };
        for item in told.into_iter().flat_map(|told| told.split([',', ';'])) {
            let mut words = item.split_whitespace();
            let (Some(Ok(number)), Some(what)) =
                (words.next().map(str::parse::<u64>), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                // "2 timed out", "1 exec failed"
                "failed" | "timed" | "exec" => self.failed += number,
                _ => {}
            }
        }
    }

    /// Adds one test that no runner counts.
    pub fn add(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// How many ran.
    pub fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            letters.by_ref().find(|end| end.is_ascii_alphabetic());
        } else {
            plain.push(letter);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn counted(lines: &[&str]) -> Counts {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.read(line));
        counts
    }

    #[test]
    fn nextests_and_cargos_closing_lines_add_up() {
        let counts = counted(&[
            "        PASS [   0.005s] xtask summary::tests::a",
            "     Summary [   0.012s] 9 tests run: 5 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 3 skipped",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ]);
        assert_eq!(
            counts,
            Counts {
                passed: 9,
                failed: 4
            }
        );
        assert_eq!(counts.ran(), 13);
    }

    #[test]
    fn colours_do_not_matter_and_other_lines_count_nothing() {
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.012s] \u{1b}[1m1\u{1b}[0m test run: \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(
            counted(&[coloured]),
            Counts {
                passed: 1,
                failed: 0
            }
        );
        assert_eq!(
            counted(&["5 passed, 1 failed", "error: test run failed"]),
            Counts::default()
        );
    }
}
