//! Times, ages and foreign words as people read them in tables.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// An age for people: two units at most, the smaller ones do not matter.
pub(super) fn age_text(milliseconds: i64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds}.{} s", milliseconds % 1_000 / 100),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// A time, to the second.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Errors come from elsewhere: one line, and not the longest.
pub(super) fn one_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 100;
    let line = text.split(char::is_control).collect::<Vec<_>>().join(" ");
    if line.chars().count() <= CHARACTERS_MAX {
        return line;
    }
    line.chars().take(CHARACTERS_MAX - 1).chain(['…']).collect()
}

/// Reads an age as it is typed: a number and `s`, `m`, `h` or `d`.
pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no age; write a number and s, m, h or d, such as 90s or 2h");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_well() {
        for (milliseconds, expected) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (59_999, "59.9 s"),
            (61_000, "1 min 1 s"),
            (3_660_000, "1 h 1 min"),
            (90_000_000, "1 d 1 h"),
        ] {
            assert_eq!(age_text(milliseconds), expected);
        }
    }

    #[test]
    fn an_error_of_many_lines_stays_in_its_row() {
        assert_eq!(one_line("a\nb\tc"), "a b c");
        assert_eq!(one_line(&"x".repeat(300)).chars().count(), 100);
    }

    #[test]
    fn ages_are_read_as_they_are_typed() {
        assert_eq!(parse_age("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_age("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "s", "2", "-1h", "1w", "2é", "1.5h"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }
}
