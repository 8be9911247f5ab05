// Text of records: parsing, escapes, times. `h` makes elements, with text nodes only.

export function h(tag, attributes, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(attributes || {})) {
		if (value == null || value === false) continue;
		if (name.startsWith("on")) on(element, name.slice(2), value);
		else if (name === "class") element.className = value;
		else if (value === true) element.setAttribute(name, "");
		else element.setAttribute(name, value);
	}
	element.append(...children.filter((child) => child != null && child !== false));
	return element;
}

export const $ = (id) => document.getElementById(id);
export const on = (target, name, act, more) => target.addEventListener(name, act, more);
export const rect = (element) => element.getBoundingClientRect();
// Set a text where it differs: what is unchanged is not drawn again.
export function put(element, text) {
	if (typeof element === "string") element = $(element);
	if (element.textContent !== String(text)) element.textContent = text;
}

// A function that draws once a frame, however often it is called.
export function framed(draw) {
	let due = 0;
	return () => { due ||= requestAnimationFrame(() => { due = 0; draw(); }); };
}

const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const INLINE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const NAMES = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };

function escaped(char) {
	const code = char.charCodeAt(0);
	return NAMES[char] ||
		(code < 256 ? "\\x" + code.toString(16).padStart(2, "0")
			: "\\u" + code.toString(16).padStart(4, "0"));
}

export const visible = (text) => String(text).replace(UNSAFE, escaped);
export const inline = (text) => String(text).replace(INLINE, escaped);

// A number beyond 53 bits keeps its digits.
class Digits {
	constructor(source) { this.source = source; }
}

function exact(_key, value, context) {
	return typeof value === "number" && context && !Number.isSafeInteger(value) &&
		/^-?\d+$/.test(context.source) ? new Digits(context.source) : value;
}

export function parse(text) {
	try {
		const record = /[:,[]-?\d{16}/.test(text) ? JSON.parse(text, exact) : JSON.parse(text);
		if (record && typeof record === "object" && !Array.isArray(record)) return record;
	} catch { /* shown as it is */ }
	return { level: "error", logger: "logagg", message: "a line is not a record", raw: text };
}

const NUMBERS = {
	trace: 5, debug: 10, info: 20, information: 20, notice: 25, warn: 30, warning: 30,
	err: 40, error: 40, exception: 40, crit: 50, critical: 50, fatal: 50, alert: 50,
	emergency: 50, panic: 50,
};
const WORDS = { warning: "WARN", critical: "CRIT", information: "INFO" };

export function severity(level) {
	const number = NUMBERS[String(level).toLowerCase()] ?? (Number(level) || 20);
	return number >= 50 ? "critical" : number >= 40 ? "error" : number >= 30 ? "warning"
		: number >= 20 ? "info" : "debug";
}

export const order = (level) => NUMBERS[level] ?? (Number(level) || 20);
export const levelWord = (level) =>
	(WORDS[level] || inline(String(level).toUpperCase())).slice(0, 5);

// The level of a line by its place, without parsing it.
export function levelOf(text) {
	const found = /^\{"timestamp":"[^"]*","level":"([^"\\]*)"/.exec(text) ||
		/"level":"([^"\\]*)"/.exec(text.slice(0, 400));
	return found ? found[1] : "info";
}

export const stampOf = (text) => (/^\{"timestamp":"([^"]*)"/.exec(text) || ["", ""])[1];

// As on the terminal: by its number, or a CRC of its name.
export function workerColour(worker) {
	if (/^\d{1,9}$/.test(worker)) return (((Number(worker) - 1) % 8) + 8) % 8;
	let crc = -1;
	for (const byte of new TextEncoder().encode(worker)) {
		crc ^= byte;
		for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
	}
	return (~crc >>> 0) % 8;
}

export const workerTag = (worker) => (/^\d/.test(worker) ? "w" : "") + inline(worker);

const two = (number) => String(number).padStart(2, "0");

export function dayOf(stamp, style) {
	const date = new Date(stamp);
	if (isNaN(date)) return "";
	if (style === "utc") return stamp.slice(0, 10);
	return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

export function clockOf(stamp, style = "clock") {
	const date = new Date(stamp);
	if (isNaN(date)) return inline(stamp || "").slice(0, 12);
	const clock = style === "utc" ? stamp.slice(11, 23)
		: `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.` +
			String(date.getMilliseconds()).padStart(3, "0");
	return style === "date" ? `${dayOf(stamp)} ${clock}` : clock + (style === "utc" ? "Z" : "");
}

export function span(seconds) {
	const whole = Math.max(0, Math.round(seconds));
	if (whole < 60) return `${whole} s`;
	if (whole < 3600) return `${Math.floor(whole / 60)}m ${whole % 60}s`;
	if (whole < 86400) return `${Math.floor(whole / 3600)}h ${Math.floor(whole % 3600 / 60)}m`;
	return `${Math.floor(whole / 86400)}d ${Math.floor(whole % 86400 / 3600)}h`;
}

export const count = (number) => Number(number).toLocaleString("en-US");

export function bytes(number) {
	const units = ["B", "KiB", "MiB", "GiB"];
	let step = 0;
	while (number >= 1024 && step < 3) { number /= 1024; step++; }
	return `${number < 10 && step ? number.toFixed(1) : Math.round(number)} ${units[step]}`;
}

const OWN = new Set(["timestamp", "level", "worker", "seq", "logger", "message", "pid",
	"process", "thread", "exception", "stack", "received", "level_number", "late", "_bytes"]);

export function valueText(value) {
	if (typeof value === "string") return value;
	return value instanceof Digits ? value.source : JSON.stringify(value);
}

export function fieldsOf(record) {
	return Object.entries(record).filter(([key]) => !OWN.has(key));
}

export function summaryOf(error) {
	if (error && typeof error === "object") {
		if (error.type) return error.message ? `${error.type}: ${error.message}` : String(error.type);
		error = error.stack;
	}
	return typeof error === "string" ? error.trimEnd().split("\n").pop().trim() : "";
}

export function stackOf(record) {
	const { stack, exception } = record;
	const parts = [stack, typeof exception === "string" ? exception : exception?.stack];
	return parts.filter((part) => typeof part === "string" && part).join("\n\n");
}

export function plain(record) {
	const fields = fieldsOf(record).map(([key, value]) => `${key}=${valueText(value)}`);
	const head = [clockOf(record.timestamp, "date"), levelWord(record.level),
		record.worker ? workerTag(record.worker) : "", record.logger || "",
		record.message ?? "", ...fields].filter(Boolean).join(" ");
	const stack = stackOf(record);
	return visible(stack ? `${head}\n${stack}` : head);
}

// The colours of the theme, for a canvas.
export function colours(canvas) {
	const known = {};
	return (name) => {
		if (!known[name]) {
			canvas.style.color = `var(--${name})`;
			known[name] = getComputedStyle(canvas).color;
		}
		return known[name];
	};
}

// The place of a record in the log, for links: its time, worker and seq.
export function placeOf(record) {
	return `${record.timestamp || ""},${record.worker ?? ""},${record.seq ?? ""}`;
}
