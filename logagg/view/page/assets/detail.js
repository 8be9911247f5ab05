// The detail of one record: its traceback, its fields, and what can be done with each.
import { bytes, h, parse, plain, stackOf, valueText, visible } from "./text.js";
import { tracebackView } from "./traceback.js";

const LONGEST_TERM = 300;

export async function copy(text, announce) {
	try {
		await navigator.clipboard.writeText(text);
		announce("copied");
	} catch {
		announce("the browser copies only over TLS or from this host");
	}
}

// A condition of the filter's grammar for a field; "" when it can have none.
export function term(key, value, negated) {
	const text = valueText(value);
	if (text.length > LONGEST_TERM || /[\r\n]/.test(text)) return "";
	const name = /^[^\s"'=!~<>?]+$/.test(key) && !key.startsWith("-") ? key
		: `"${key.replace(/["\\]/g, "\\$&")}"`;
	const plainValue = /^[^\s"'=~<>]+$/.test(text) && text !== "" && typeof value !== "object";
	const quoted = typeof value === "string" && /^[+-]?\d/.test(text);
	const shown = plainValue && !quoted ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
	return `${negated ? "-" : ""}${name}=${shown}`;
}

function flat(record, prefix = "") {
	const found = [];
	for (const [key, value] of Object.entries(record)) {
		const name = prefix + key;
		if (value && typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype &&
				Object.keys(value).length && found.length < 200) {
			found.push(...flat(value, `${name}.`));
		} else found.push([name, value]);
	}
	return found;
}

const button = (label, act, title) => h("button", { onclick: act, title }, label);

export function detailOf(entry, actions) {
	const record = parse(entry.text);
	const box = h("div", { class: "detail" });
	const stack = stackOf(record);
	const tools = h("div", { class: "tools" },
		button("see in context", () => actions.context(entry)), button("copy link", () => actions.link(entry)),
		button("copy JSON", () => actions.copy(entry.text)), button("copy text", () => actions.copy(plain(record))),
		button("close", () => actions.close()));
	box.append(tools);
	if (record._bytes) {
		const text = `long: ${bytes(record._bytes)}; its texts are cut`;
		box.append(h("p", { class: "dim" }, text, entry.n && actions.live()
			? h("a", { href: `/record?n=${entry.n}`, download: "record.json" }, " download it whole") : null));
	}
	const message = String(record.message ?? "");
	if (message.includes("\n") || message.length > 120) box.append(h("pre", { class: "whole" }, visible(message)));
	if (stack || record.exception) box.append(tracebackView(stack, record.exception));
	const body = h("tbody");
	const rows = flat(record).filter(([key]) => !/^(exception\.|stack$|_bytes$)/.test(key) || key === "exception.type");
	for (const [key, value] of rows.slice(0, 200)) {
		const only = term(key, value, false), not = term(key, value, true);
		const able = only && key !== "timestamp" && key !== "received";
		body.append(h("tr", {},
			h("th", { scope: "row" }, visible(key.slice(0, 200))),
			h("td", { class: "value" }, visible(valueText(value))),
			h("td", { class: "acts" },
				able && button("only this", () => actions.filter(only), only),
			able && button("not this", () => actions.filter(not), not),
			button("copy", () => actions.copy(valueText(value))))));
	}
	box.append(h("table", {}, h("caption", { class: "off" }, "fields"), body));
	box.append(h("details", {}, h("summary", {}, "raw JSON"), h("pre", {}, visible(entry.text))));
	return box;
}

