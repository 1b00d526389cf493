//! Query parameters: each known by name, given at most once, and read in words that name it.

use std::borrow::Cow;
use std::ops::Range;

use axum::extract::Query;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use hyper::Uri;
use uuid::Uuid;

use crate::http::error::ApiError;
use crate::postgres::queries::{LedgerFilter, TransactionType};
use crate::wallet::WalletId;

/// Ledger rows on a page that does not say how many.
const LEDGER_LIMIT_DEFAULT: i64 = 50;
/// Wallets on a page that does not say how many.
const WALLETS_LIMIT_DEFAULT: i64 = 100;
/// Rows on any page at most.
const LIMIT_MAX: i64 = 1_000;
/// How far an offset may reach: the rows before it are read and thrown away. Beyond it, dates narrow the question.
const OFFSET_MAX: i64 = 100_000;

/// A query's parameters, decoded.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// # Errors
    /// 400 where a parameter is not one of `known`, or is given twice: a filter that is not understood would be a wrong
    /// answer that looks right.
    fn read(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| ApiError::validation("the query cannot be read; expected name=value pairs"))?;
        for (place, (name, _)) in parameters.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let names = known.join(", ");
                return Err(ApiError::validation(format!("unknown query parameter {name:?}; there are: {names}")));
            }
            if parameters[..place].iter().any(|(earlier, _)| earlier == name) {
                return Err(ApiError::validation(format!("{name} is given twice")));
            }
        }
        Ok(Parameters(parameters))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A whole number within bounds.
    fn number(&self, name: &str, minimum: i64, maximum: i64, default: i64) -> Result<i64, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(default);
        };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse::<i64>().ok() } else { None };
        number
            .filter(|number| (minimum..=maximum).contains(number))
            .ok_or_else(|| ApiError::validation(format!("{name} must be a whole number from {minimum} to {maximum}")))
    }

    /// A date or a time, as the span that it stands for.
    fn time(&self, name: &str) -> Result<Option<Range<DateTime<Utc>>>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        day(text).or_else(|| moment(text)).map(Some).ok_or_else(|| {
            ApiError::validation(format!(
                "{name} must be a date such as 2025-01-31 or an RFC 3339 time such as 2025-01-31T12:00:00Z"
            ))
        })
    }
}

/// A page of wallets: how many, after which one.
pub(super) fn wallets_page(uri: &Uri) -> Result<(i64, Option<WalletId>), ApiError> {
    let parameters = Parameters::read(uri, &["limit", "cursor"])?;
    let limit = parameters.number("limit", 1, LIMIT_MAX, WALLETS_LIMIT_DEFAULT)?;
    let cursor = parameters
        .get("cursor")
        .map(WalletId::new)
        .transpose()
        .map_err(|_| ApiError::validation("cursor must be one that an answer's Link header gave"))?;
    Ok((limit, cursor))
}

/// The filter and the page of a ledger route.
pub(super) fn ledger_filter(uri: &Uri) -> Result<LedgerFilter, ApiError> {
    let parameters = Parameters::read(uri, &["transactionType", "startDate", "endDate", "limit", "offset"])?;
    let transaction_type = parameters.get("transactionType").map(|text| {
        TransactionType::from_text(text).ok_or_else(|| {
            let names = TransactionType::ALL.map(TransactionType::as_str).join(", ");
            ApiError::validation(format!("transactionType must be one of {names}"))
        })
    });
    Ok(LedgerFilter {
        wallet_id: None,
        reference_id: None,
        transaction_type: transaction_type.transpose()?,
        from: parameters.time("startDate")?.map(|span| span.start),
        before: parameters.time("endDate")?.map(|span| span.end),
        limit: parameters.number("limit", 1, LIMIT_MAX, LEDGER_LIMIT_DEFAULT)?,
        offset: parameters.number("offset", 0, OFFSET_MAX, 0)?,
    })
}

/// A transfer's id in the path.
pub(super) fn reference_id(text: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(text).map_err(|_| ApiError::validation("the reference must be a transferId, which is a UUID"))
}

/// A query that must be empty.
pub(super) fn no_parameters(uri: &Uri) -> Result<(), ApiError> {
    Parameters::read(uri, &[]).map(|_| ())
}

/// A whole day in UTC.
fn day(text: &str) -> Option<Range<DateTime<Utc>>> {
    if text.len() != "2025-01-31".len() {
        // chrono takes years of any length.
        return None;
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    let next = date.checked_add_days(Days::new(1))?;
    Some(date.and_time(NaiveTime::MIN).and_utc()..next.and_time(NaiveTime::MIN).and_utc())
}

/// A moment: one microsecond, as the log counts time.
fn moment(text: &str) -> Option<Range<DateTime<Utc>>> {
    let time = DateTime::parse_from_rfc3339(&with_plus(text)).ok()?.to_utc();
    Some(time..time.checked_add_signed(TimeDelta::microseconds(1))?)
}

/// An offset's plus sign, where the client wrote it into the query as it is: there it means a space.
fn with_plus(text: &str) -> Cow<'_, str> {
    match text.len().checked_sub("+00:00".len()) {
        Some(place) if text.as_bytes()[place] == b' ' => {
            Cow::Owned(format!("{}+{}", &text[..place], &text[place + 1..]))
        }
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Option<(String, String)> {
        day(text).or_else(|| moment(text)).map(|span| (span.start.to_rfc3339(), span.end.to_rfc3339()))
    }

    #[test]
    fn a_date_is_its_whole_day_and_a_time_is_its_microsecond() {
        let pair = |from: &str, before: &str| Some((from.to_owned(), before.to_owned()));
        assert_eq!(span("2024-02-29"), pair("2024-02-29T00:00:00+00:00", "2024-03-01T00:00:00+00:00"));
        let noon = pair("2024-02-29T12:00:00+00:00", "2024-02-29T12:00:00.000001+00:00");
        assert_eq!(span("2024-02-29T12:00:00Z"), noon);
        assert_eq!(span("2024-02-29T14:00:00+02:00"), noon);
        assert_eq!(span("2024-02-29T14:00:00 02:00"), noon, "a plus sign that the query turned into a space");
    }

    #[test]
    fn what_is_no_date_and_no_time_is_refused() {
        for text in [
            "",
            "zzz",
            "2024-02-30",
            "2024-2-9",
            "2024-13-01",
            "+12024-01-01",
            "2024-01-01T00:00:00",
            "20240101",
            "2024-01-01T25:00:00Z",
            "12:00",
            "now",
            "1700000000",
            "€€€€€€",
            "9999-99-99",
            "ä2:00",
        ] {
            assert_eq!(span(text), None, "{text}");
        }
    }
}
