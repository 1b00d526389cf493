//! What answers look like: JSON, with money written exactly.

use axum::body::Body;
use axum::response::Response;
use chrono::{DateTime, Utc};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::log::WalletView;
use crate::money::{Amount, Currency};
use crate::wallet::{Wallet, WalletEvent};

/// An answer with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(body).expect("answers are plain structs, which always serialise");
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// 200 with a JSON body.
pub(super) fn ok(body: &impl Serialize) -> Response {
    json(StatusCode::OK, body)
}

/// Decimal text as the JSON number that it is: written into the answer as it stands, never through a float.
fn number(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("decimal text is a JSON number")
}

fn amount_number(amount: Amount, currency: Currency) -> Box<RawValue> {
    number(amount.to_json_number(currency))
}

/// The shortest exact JSON number of a sum in minor units, which may be larger than any one [`Amount`].
pub(super) fn sum_number(minor_units: i128, currency: Currency) -> Box<RawValue> {
    let scale = 10_i128.pow(currency.digits());
    let (whole, part) = (minor_units / scale, (minor_units % scale).unsigned_abs());
    let sign = if minor_units < 0 && whole == 0 { "-" } else { "" };
    let fraction = format!("{part:0width$}", width = currency.digits() as usize);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    number(format!("{sign}{whole}{point}{fraction}"))
}

/// A wallet as the contract shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WalletBody<'a> {
    id: &'a str,
    owner_id: &'a str,
    currency: &'static str,
    balance: Box<RawValue>,
    status: &'static str,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_trail: Option<Vec<TrailEntry<'a>>>,
}

/// One event of a wallet's trail.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TrailEntry<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    occurred_at: DateTime<Utc>,
}

impl<'a> From<&'a Wallet> for WalletBody<'a> {
    fn from(wallet: &'a Wallet) -> Self {
        WalletBody {
            id: wallet.id.as_str(),
            owner_id: wallet.owner_id.as_str(),
            currency: wallet.currency.code(),
            balance: amount_number(wallet.balance, wallet.currency),
            status: wallet.status.as_str(),
            version: wallet.version,
            created_at: wallet.created_at,
            updated_at: wallet.updated_at,
            audit_trail: None,
        }
    }
}

impl<'a> From<&'a WalletView> for WalletBody<'a> {
    fn from(view: &'a WalletView) -> Self {
        let entry = |(event, occurred_at): &'a (WalletEvent, DateTime<Utc>)| TrailEntry {
            r#type: event.event_type(),
            amount: event.amount().map(|amount| amount_number(amount, event.currency())),
            description: event.description().map(|description| description.as_str()),
            occurred_at: *occurred_at,
        };
        WalletBody { audit_trail: Some(view.trail.iter().map(entry).collect()), ..WalletBody::from(&view.wallet) }
    }
}

/// A transfer's answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TransferBody<'a> {
    pub(super) from_wallet: WalletBody<'a>,
    pub(super) to_wallet: WalletBody<'a>,
    pub(super) transfer_id: Uuid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_beyond_an_amount_are_written_exactly() {
        let written = |minor, code| {
            sum_number(minor, Currency::from_code(code).expect("a currency of the test")).get().to_owned()
        };
        assert_eq!(written(0, "USD"), "0");
        assert_eq!(written(5, "USD"), "0.05");
        assert_eq!(written(1_050, "USD"), "10.5");
        assert_eq!(written(1_000, "USD"), "10");
        assert_eq!(written(1_000, "JPY"), "1000");
        assert_eq!(written(1_000, "BHD"), "1");
        assert_eq!(written(i128::from(i64::MAX) * 10 + 1, "USD"), "922337203685477580.71");
        assert_eq!(written(-5, "USD"), "-0.05");
        assert_eq!(written(-105, "USD"), "-1.05");
    }
}
