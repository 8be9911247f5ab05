// The page: its connection, its keys, and what joins the parts.
import { $, clockOf, colours, count, h, on, order, parse, placeOf, plain, put, span } from "./text.js";
import { List, entryOf, hole } from "./list.js";
import { copy, detailOf } from "./detail.js";
import { Filters } from "./filters.js";
import { Strip } from "./strip.js";
import { MachineryTab } from "./machinery.js";

const LONGEST_PAUSE = 15, GONE_AFTER = 6, SLEEP_AFTER = 60_000;

let source = null, lastId = "", tries = 0, retryAt = 0, down = false;
let state = {}, hello = {}, seenAt = 0, keep = 0, olderDone = false, olderBusy = false;
let control = "", skip = 0, opened = false;

const announce = (text) => { put("announce", ""); put("announce", text); };

// --- the list

const hooks = {
	paused: drawPaused,
	trimmed() { olderDone = false; },
	load: (entry) => loadHole(entry),
	older: () => loadOlder(),
};
const list = new List($("list"), hooks);
const around = new List($("context-list"), { ...hooks, trimmed() {}, older() {}, paused() {} });
const current = () => ($("context-list").hidden ? list : around);
const filters = new Filters(() => changed());
const strip = new Strip($("strip"), {
	range: (since, until) => filters.setRange(since, until),
	jump,
	chosen: (level, worker) => filters.chosen(level, worker),
});

function drawPaused() {
	const bar = $("paused");
	bar.hidden = list.following || filters.past;
	const came = list.missed ? ` – ${count(list.missed)} new record${list.missed === 1 ? "" : "s"} ↓` : "";
	put(bar, `Paused${came}`);
	$("pause").hidden = !list.following;
	gutter();
}

// A path with the filter and more in its query.
function path(name, more = {}) {
	const query = filters.query();
	for (const key in more) query.set(key, more[key]);
	return `${name}?${query}`;
}

async function records(query) {
	const answer = await fetch(query);
	if (!answer.ok) throw new Error(answer.status);
	const [head, ...lines] = (await answer.text()).split("\n");
	return [JSON.parse(head), lines.filter(Boolean).map(entryOf)];
}

async function loadHole(entry) {
	const [head, found] = await records(path("/records", { from: entry.from, to: entry.to + 1 }));
	const oldest = found.length ? found[0].n : entry.to;
	const rest = head.more && oldest > entry.from
		? [{ ...entry, to: oldest - 1, count: Math.max(entry.count - found.length, 1) }] : [];
	if (!found.length) rest.push({ ...entry, gone: true });
	list.replace(entry, [...rest, ...found]);
}

async function loadOlder() {
	if (olderBusy || olderDone || filters.past || !list.entries.length) return;
	olderBusy = true;
	try {
		const [, found] = await records(path("/records", { to: list.oldest ?? 0 }));
		if (found.length) {
			list.addBefore(found);
			list.extendAbove();
		} else olderDone = true;
	} finally { olderBusy = false; }
}

// After the filter has changed: stay at the record that was read.
async function showAt(n) {
	const first = list.oldest;
	if (first > n) {
		const [, found] = await records(path("/records", { to: n + 200 }));
		const older = found.filter((entry) => entry.n < first);
		const from = (older[older.length - 1]?.n ?? n) + 1;
		if (from < first - 1) older.push(hole(from, first - 1));
		list.addBefore(older);
	}
	const place = list.entries.findIndex((entry) => entry.n >= n);
	if (place >= 0) list.reveal(list.base + place, false);
}

function jump(since, until) {
	const place = list.entries.findIndex((entry) => entry.stamp && entry.stamp >= since);
	if (place > 0 || (place === 0 && (olderDone || filters.past))) list.reveal(list.base + place);
	else filters.setRange(since, until);
}

// --- the connection

function changed() {
	keep = list.following || filters.past ? 0 : list.place()?.n || 0;
	skip = 0;
	closeContext();
	connect(false);
}

function connect(resume) {
	source?.close();
	retryAt = 0;
	if (filters.past) { searchPast(); return; }
	$("past").hidden = true;
	source = new EventSource(path("/events", resume && lastId ? { last: lastId } : {}));
	on(source, "hello", (e) => greet(JSON.parse(e.data), resume));
	on(source, "state", (e) => { state = JSON.parse(e.data); drawState(); });
	on(source, "batch", (e) => take(e));
	on(source, "caught_up", () => drawEmpty());
	source.onerror = () => lost();
}

function greet(found, resume) {
	hello = found;
	machinery.control = found.control;
	document.body.classList.toggle("control", found.control);
	$("stale").hidden = found.version === document.documentElement.dataset.version;
	if (found.fresh) {
		list.clear();
		filters.reset();
		strip.reset(false);
		olderDone = false;
		drawPaused();
	} else if (resume && down) {
		list.add([{ kind: "note", text: `reconnected after ${span((Date.now() - down) / 1000)}`, stamp: "" }]);
	}
	tries = 0;
	down = false;
}

function takeBatch(data, past) {
	const [first, ...lines] = data.split("\n");
	const head = JSON.parse(first), found = lines.map(entryOf);
	if (past) for (const entry of found) entry.past = true;
	if (head.skipped?.count) found.unshift({ ...hole(0, 0), ...head.skipped });
	list.add(found);
	filters.count(head.counts, head.total);
	strip.count(head.counts);
	gutter();
	return [head, found];
}

function take(e) {
	if (e.lastEventId) lastId = e.lastEventId;
	const [head, found] = takeBatch(e.data);
	if (head.total) seenAt = Date.now();
	if ("more" in head && found.length) { // the first ones: their own time counts
		const stamp = Date.parse(found[found.length - 1].stamp);
		seenAt = stamp || seenAt;
		if (keep) { showAt(keep); keep = 0; }
		openLink();
	}
	drawEmpty();
}

async function lost() {
	source.close();
	if (!down) down = Date.now();
	const pause = Math.min(LONGEST_PAUSE, 2 ** tries++);
	retryAt = Date.now() + pause * 1000;
	drawState();
	try {
		const answer = await fetch("/session");
		if (answer.status === 401) { retryAt = Infinity; drawState(); }
	} catch { /* it does not answer: tried again */ }
}

function drawState() {
	const [kind, words] = stateNow();
	if ($("dot").className !== kind) $("dot").className = kind;
	put("state-words", words);
	put("age", seenAt && !filters.past ? `last record ${span((Date.now() - seenAt) / 1000)} ago` : "");
	put("run", hello.files?.length ? hello.files.map((path) => path.split("/").pop()).join(", ")
		: state.run ? `run ${state.run}, workers ${state.alive}/${state.workers} alive` : "no run");
	put("loss", `${count(state.lost || 0)} lost`);
	$("loss").classList.toggle("bad", Boolean(state.lost));
}

function stateNow() {
	if (retryAt === Infinity) return ["red", "gone: another server; use the link that it prints"];
	if (retryAt) {
		const left = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
		return tries > GONE_AFTER ? ["red", `gone: no answer; trying again in ${left} s`]
			: ["amber", `reconnecting in ${left} s`];
	}
	if (filters.past) return ["blue", "the past"];
	if (!source || source.readyState !== 1) return ["amber", "connecting"];
	if (state.ended) return ["red", `gone: ${state.error || "the log cannot be read any more"}`];
	if (state.connected === false) return ["amber", state.error || "no logagg is running here; waiting"];
	return ["green", "live"];
}

setInterval(() => {
	if (retryAt && retryAt <= Date.now()) connect(true);
	drawState();
	strip.draw();
}, 1000);

on(document, "visibilitychange", () => {
	clearTimeout(document.sleep);
	if (document.hidden) {
		document.sleep = setTimeout(() => { if (!filters.past) { source?.close(); source = null; } }, SLEEP_AFTER);
	} else if (!source && !filters.past) connect(true);
});

// --- the past

function searchPast() {
	list.clear();
	list.pause("past");
	list.fillsBelow = true;
	filters.reset();
	strip.reset(true);
	drawPaused();
	$("past").hidden = $("cancel").hidden = false;
	$("more").hidden = true;
	$("progress").hidden = false;
	let shown = 0;
	const words = (text) => {
		put("past-words", text);
		drawState();
		drawEmpty();
	};
	const end = (text) => {
		source.close();
		$("cancel").hidden = $("progress").hidden = true;
		words(text);
		openLink();
	};
	words("searching");
	source = new EventSource(path("/past", { skip }));
	on(source, "batch", (e) => {
		const [head, found] = takeBatch(e.data, true);
		shown += found.length;
		$("progress").value = head.size ? head.done / head.size : 0;
		words(`searching: ${count(shown)} shown, ${Math.round($("progress").value * 100)} %`);
	});
	on(source, "end", (e) => {
		const { hits, more, held } = JSON.parse(e.data);
		const first = skip + (shown ? 1 : 0);
		$("more").hidden = !more;
		const of = more || skip ? `${count(first)} to ${count(skip + shown)} of ` : "";
		end(`${of}${count(hits)} records${held ? " in the server's memory; the consumer writes no file" : ""}`);
		skip += shown;
	});
	on(source, "failed", (e) => end(JSON.parse(e.data).error));
	source.onerror = () => end("the search has ended early");
	$("cancel").onclick = () => end(`cancelled: ${count(shown)} shown`);
	$("more").onclick = () => searchPast();
}

// --- a record

function toggle(row, focus = true) {
	if (!row?.entry || row.entry.kind !== "record") return;
	const detail = row.querySelector(".detail");
	if (detail) { detail.remove(); if (focus) row.focus({ preventScroll: true }); return; }
	list.pause("open");
	row.append(detailOf(row.entry, {
		context: (entry) => openContext(entry), link: copyLink,
		copy: (text) => copy(text, announce),
		filter: (term) => filters.add(term),
		live: () => !row.entry.past,
		close: () => toggle(row),
	}));
	current().select(row, focus);
}

function copyLink(entry) {
	const query = filters.query().toString();
	const place = encodeURIComponent(placeOf(parse(entry.text)));
	copy(`${location.origin}/${query ? `?${query}` : ""}#r=${place}`, () => announce("link copied"));
}

async function openContext(entry, at = "", words = "in context, unfiltered") {
	const query = new URLSearchParams({ count: 60 });
	if (entry && !entry.past) query.set("n", entry.n);
	query.set("at", at || placeOf(parse(entry.text)));
	const [head, found] = await records(`/around?${query}`);
	list.pause("open");
	const hit = found.find((each) => each.n === head.hit);
	$("context").hidden = $("context-list").hidden = false;
	put("context-words", hit ? words
		: "This record is not held any more, in memory or in files.");
	around.clear();
	around.pause("open");
	if (hit) hit.hit = true;
	around.entries = found.map((each) => (head.live ? each : { ...each, past: true }));
	around.show(0);
	const place = around.entries.findIndex((each) => each.n === head.hit);
	if (hit) around.reveal(place);
	return hit;
}

function closeContext() {
	$("context").hidden = $("context-list").hidden = true;
	around.clear();
	if (location.hash.startsWith("#r=")) history.replaceState(null, "", location.pathname + location.search);
}

async function openLink() {
	if (opened || !location.hash.startsWith("#r=")) return;
	opened = true;
	const at = decodeURIComponent(location.hash.slice(3));
	const hit = await openContext(null, at, "the record of the link, with its neighbours, unfiltered");
	if (hit) toggle(around.selected);
}
on(window, "hashchange", () => { opened = false; openLink(); });

for (const each of [list, around]) {
	on(each.box, "click", (e) => {
		if (!e.target.closest(".line") || !document.getSelection().isCollapsed) return;
		toggle(e.target.closest(".row"));
	});
}

// --- the gutter

let gutterTimer = 0;
function gutter() { gutterTimer ||= setTimeout(drawGutter, 300); }

function drawGutter() {
	gutterTimer = 0;
	const canvas = $("gutter"), height = canvas.clientHeight || 300;
	if (canvas.height !== height) canvas.height = height;
	const context = canvas.getContext("2d"), colour = colours(canvas);
	const size = list.entries.length || 1;
	context.clearRect(0, 0, 12, height);
	context.fillStyle = colour("edge");
	context.fillRect(0, (list.start - list.base) / size * height, 12, Math.max(2, (list.end - list.start) / size * height));
	let errors = 0;
	list.entries.forEach((entry, place) => {
		const kind = entry.kind === "mark" ? "info" : entry.kind === "record" ? entry.level : "debug";
		if (entry.kind === "record" && order(kind) < 30) return;
		if (order(kind) >= 40) errors++;
		context.fillStyle = colour(`bar-${kind}`);
		context.fillRect(order(kind) >= 40 ? 2 : 4, place / size * height, 8, 2);
	});
	canvas.dataset.errors = errors;
}
on($("gutter"), "click", (e) => {
	const part = e.offsetY / ($("gutter").clientHeight || 1);
	if (list.entries.length) list.reveal(list.base + Math.floor(part * (list.entries.length - 1)));
});
on(list.box, "scroll", gutter, { passive: true });

// --- tools

const isBad = (entry) => entry.kind === "record" && order(entry.level) >= 40;

function nextError(step = 1) {
	const shown = current(), place = shown.next(isBad, step);
	if (place < 0) announce(`no error among the ${count(shown.entries.length)} records in this page`);
	else shown.reveal(place);
}

function pauseOrGo() {
	if (filters.past) return;
	if (list.following) list.pause("space");
	else list.follow();
	announce(list.following ? "following" : "paused");
}

function mark() {
	const now = new Date().toISOString();
	list.add([{ kind: "mark", text: `mark ${clockOf(now)}`, stamp: now }]);
}

function clear() {
	list.clear();
	olderDone = true;
	drawPaused();
	drawEmpty();
}

function copyAll(text) {
	const found = list.entries.filter((entry) => entry.kind === "record");
	const lines = found.map((entry) => (text ? plain(parse(entry.text)) : entry.text));
	copy(lines.join("\n") + "\n", () => announce(`${count(found.length)} records copied`));
}

for (const form of ["json", "text"]) {
	$(`copy-${form}`).onclick = () => copyAll(form === "text");
	on($(`download-${form}`), "click", (e) => {
		e.currentTarget.href = path("/download", { form, past: Number(filters.past) });
	});
}
const CLICKS = {
	pause: pauseOrGo, paused: () => list.follow(), "next-error": () => nextError(), mark, clear,
	"context-close": closeContext, reload: () => location.reload(), live: () => filters.setRange("", ""),
	switch: () => { filters.off = !filters.off; filters.apply(); }, "help-open": () => $("help").showModal(),
};
for (const id in CLICKS) $(id).onclick = CLICKS[id];

function drawEmpty() {
	const box = $("empty");
	box.hidden = list.entries.some((entry) => entry.kind !== "note");
	if (box.hidden) return;
	const hidden = filters.total > 0;
	const key = `${hidden} ${filters.past} ${state.run} ${state.connected}`;
	if (box.key === key) return;
	box.key = key;
	if (hidden || filters.past) {
		box.replaceChildren(h("p", {}, filters.past ? "Nothing found." : "No record matches the filter."),
			h("button", { onclick: () => filters.clear() }, "remove all filters"));
	} else if (state.connected) {
		const who = state.program || (state.run ? `run ${state.run}` : "the file");
		box.replaceChildren(h("p", {}, `Nothing yet of ${who}, workers: ${state.alive}. To log one line:`),
			h("pre", {}, 'import logging\nlogging.getLogger("app").info("hello")'));
	} else {
		box.replaceChildren(h("p", {}, "No logagg is running here. To start a program:"),
			h("pre", {}, "logagg run --sink file:app.log app.py"));
	}
}

// --- dialogs, settings

const machinery = new MachineryTab(async (action, words, more = {}) => {
	const dialog = $("confirm");
	put("confirm-words", words);
	dialog.returnValue = "";
	dialog.showModal();
	await new Promise((done) => on(dialog, "close", done, { once: true }));
	if (dialog.returnValue !== "yes") return;
	control ||= (await (await fetch("/session")).json()).control;
	announce(`${action}: asked for`);
	const answer = await fetch("/control", { method: "POST", headers: { "X-Logagg-Control": control },
		body: JSON.stringify({ action, confirmed: true, ...more }) });
	const { done, error } = await answer.json();
	announce(done || error);
	put("service", done || error);
});
$("do-reload").onclick = () => machinery.act("reload", "Reload: replace all workers, one after the other?");
$("stop").onclick = () => machinery.act("stop", "Stop the run? Its workers end.");
$("scale-form").onsubmit = (e) => {
	e.preventDefault();
	const workers = Number($("scale").value);
	machinery.act("scale", `Scale to ${workers} workers?`, { workers });
};

function tab(name) {
	for (const each of ["log", "machinery"]) {
		$(each).hidden = each !== name;
		$(`tab-${each}`).setAttribute("aria-selected", String(each === name));
		$(`tab-${each}`).tabIndex = each === name ? 0 : -1;
	}
	machinery.show(name === "machinery");
	if (name === "log" && list.following) list.toEnd();
}
for (const name of ["log", "machinery"]) {
	$(`tab-${name}`).onclick = () => tab(name);
	$(`tab-${name}`).onkeydown = (e) => { if (/^Arrow(Left|Right)$/.test(e.key)) KEYS.t(); };
}

for (const [button, region] of [["loss", "ledger-region"], ["run", "worker-rows-region"]]) {
	$(button).onclick = () => { tab("machinery"); $(region).focus(); };
}
$("settings-open").onclick = () => {
	$("set-events").checked = !filters.box.value.includes(NO_EVENTS);
	$("settings").showModal();
};
const NO_EVENTS = "-logger=logagg";
$("set-events").onchange = () => {
	const rest = filters.box.value.replace(NO_EVENTS, "").trim();
	filters.box.value = $("set-events").checked ? rest : `${rest} ${NO_EVENTS}`.trim();
	filters.apply();
};

const settings = { wrap: false, compact: false, time: "clock", theme: "auto" };
try { Object.assign(settings, JSON.parse(localStorage.getItem("logagg") || "{}")); } catch { /* the defaults */ }
function applySettings() {
	document.body.classList.toggle("wrap", settings.wrap);
	document.body.classList.toggle("compact", settings.compact);
	document.documentElement.dataset.theme = settings.theme;
	list.style = around.style = settings.time;
	for (const key in settings) $(`set-${key}`)[typeof settings[key] === "boolean" ? "checked" : "value"] = settings[key];
	if (list.entries.length) { if (list.following) list.follow(); else list.show(list.start, list.anchor()); }
	gutter();
}
for (const key of Object.keys(settings)) {
	$(`set-${key}`).onchange = (e) => {
		settings[key] = e.target.type === "checkbox" ? e.target.checked : e.target.value;
		try { localStorage.setItem("logagg", JSON.stringify(settings)); } catch { /* for this page only */ }
		applySettings();
	};
}

// --- keys

function selected(act) {
	const entry = current().selected?.entry;
	if (entry?.kind === "record") act(entry);
}

const KEYS = {
	"/": () => { filters.box.focus(); filters.box.select(); },
	" ": pauseOrGo,
	e: () => nextError(1), E: () => nextError(-1),
	g: () => { list.pause("open"); list.show(list.base); list.box.scrollTop = 0; },
	G: () => { if (filters.past) list.reveal(list.last - 1); else list.follow(); },
	j: () => current().move(1), k: () => current().move(-1),
	ArrowDown: () => current().move(1), ArrowUp: () => current().move(-1),
	Enter: () => toggle(current().selected),
	c: () => selected(openContext), l: () => selected(copyLink),
	m: mark, x: clear,
	t: () => { const name = $("log").hidden ? "log" : "machinery"; tab(name); $(`tab-${name}`).focus(); },
	"?": CLICKS["help-open"],
	Escape: () => closeContext(),
};
KEYS.Home = KEYS.g;
KEYS.End = KEYS.G;

on(document, "keydown", (e) => {
	const target = e.target;
	if (e.ctrlKey || e.metaKey || e.altKey || document.querySelector("dialog[open]")) return;
	if (e.key === "Escape" && target.matches("input")) { e.preventDefault(); target.blur(); return; }
	if (target.matches("input, select, textarea")) return;
	if ((e.key === " " || e.key === "Enter") && target.closest("button, a, summary")) return;
	if (e.key.startsWith("Arrow") && target.closest("[role=tab]")) return;
	const act = KEYS[e.key];
	if (!act || ($("log").hidden && !"t?".includes(e.key))) return;
	e.preventDefault();
	act();
});

applySettings();
connect(false);
