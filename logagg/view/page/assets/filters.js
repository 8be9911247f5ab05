// The filter: the box, the chips, the range of time, and the line that shows all of them.
import { $, count, framed, h, inline, on, order, put, severity, workerColour, workerTag } from "./text.js";

export class Filters {
	constructor(changed) {
		this.changed = changed;
		this.levels = new Set();
		this.workers = new Set();
		this.off = false;
		this.counts = new Map(); // "level\tworker" → number
		this.total = 0;
		this.draw = framed(() => this.drawNow());
		this.box = $("box");
		this.inputs = [this.box, $("since"), $("until")];
		for (const input of this.inputs) {
			on(input, "input", () => this.typed());
			on(input, "change", () => this.typed(0));
		}
		on($("not"), "change", () => this.apply());
		on($("filter"), "submit", (e) => { e.preventDefault(); this.typed(0); });
		this.read();
	}

	read() {
		const query = new URLSearchParams(location.search);
		this.box.value = query.get("q") || "";
		$("not").checked = query.get("not") === "1";
		$("since").value = query.get("since") || "";
		$("until").value = query.get("until") || "";
		this.levels = new Set((query.get("levels") || "").split(",").filter(Boolean));
		this.workers = new Set((query.get("workers") || "").split(",").filter(Boolean));
		this.off = query.get("off") === "1";
		this.used = this.texts();
	}

	texts() { return this.inputs.map((input) => input.value.trim()).join("\0") + $("not").checked; }

	query(all = false) {
		const query = new URLSearchParams();
		const put = (key, value) => { if (value) query.set(key, value); };
		if (all || !this.off) {
			put("q", this.box.value.trim());
			put("not", $("not").checked && this.box.value.trim() ? "1" : "");
			put("levels", [...this.levels].join(","));
			put("workers", [...this.workers].join(","));
		}
		put("since", $("since").value.trim());
		put("until", $("until").value.trim());
		return query;
	}

	get past() { return Boolean($("since").value.trim() || $("until").value.trim()); }

	save() {
		const query = this.query(true);
		if (this.off) query.set("off", "1");
		const text = query.toString();
		history.replaceState(null, "", (text ? `/?${text}` : "/") + location.hash);
	}

	typed(pause = 250) {
		clearTimeout(this.timer);
		this.timer = setTimeout(() => this.check(), pause);
	}

	// The server reads the filter; one with an error changes nothing but the words below.
	async check() {
		const texts = this.texts();
		const query = this.query(true);
		let error = "";
		try {
			error = (await (await fetch(`/check?${query}`)).json()).error;
		} catch { return; }
		if (texts !== this.texts()) return;
		put("box-error", error);
		this.box.setAttribute("aria-invalid", String(Boolean(error)));
		if (!error && texts !== this.used) this.apply();
	}

	apply() {
		this.used = this.texts();
		put("box-error", "");
		this.box.setAttribute("aria-invalid", "false");
		this.save();
		this.changed();
	}

	add(term) {
		this.box.value = `${this.box.value.trim()} ${term}`.trim();
		this.off = false;
		this.apply();
	}

	setRange(since, until) {
		$("since").value = since;
		$("until").value = until;
		this.apply();
	}

	clear() {
		this.box.value = "";
		$("not").checked = false;
		this.levels.clear();
		this.workers.clear();
		this.off = false;
		this.apply();
	}

	toggle(set, name) {
		if (!set.delete(name)) set.add(name);
		this.off = false;
		this.apply();
	}

	reset() {
		this.counts.clear();
		this.total = 0;
	}

	count(cells, total) {
		this.total += total;
		for (const [, level, worker, number] of cells) {
			const key = `${level}\t${worker}`;
			this.counts.set(key, (this.counts.get(key) || 0) + number);
		}
		this.draw();
	}

	chosen(level, worker) {
		return this.off || ((!this.levels.size || this.levels.has(level)) &&
			(!this.workers.size || this.workers.has(worker)));
	}

	drawNow() {
		const levels = new Map([...this.levels].map((name) => [name, 0]));
		const workers = new Map([...this.workers].map((name) => [name, 0]));
		let shown = 0;
		for (const [key, number] of this.counts) {
			const [level, worker] = key.split("\t");
			const isLevel = !this.levels.size || this.levels.has(level);
			const isWorker = !this.workers.size || this.workers.has(worker);
			levels.set(level, (levels.get(level) || 0) + (isWorker ? number : 0));
			workers.set(worker, (workers.get(worker) || 0) + (isLevel ? number : 0));
			if (this.off || (isLevel && isWorker)) shown += number;
		}
		this.shown = shown;
		this.chips($("levels"), levels, this.levels, (a, b) => order(b) - order(a),
			(name) => [`chip ${severity(name)}`, inline(name)]);
		this.chips($("workers"), workers, this.workers,
			(a, b) => a.localeCompare(b, "en", { numeric: true }),
			(name) => [`chip worker c${workerColour(name)}`, name ? workerTag(name) : "no worker"]);
		this.drawActive(shown);
	}

	chips(box, counts, set, sort, look) {
		const known = new Map([...box.children].map((chip) => [chip.dataset.name, chip]));
		const names = [...counts.keys()].sort(sort).slice(0, 40);
		names.forEach((name, place) => {
			let chip = known.get(name);
			if (!chip) {
				const [kind, label] = look(name);
				chip = h("button", { class: kind, "data-name": name,
					onclick: () => this.toggle(set, name) }, label, " ", h("b", {}));
			}
			known.delete(name);
			chip.setAttribute("aria-pressed", String(set.has(name)));
			put(chip.lastChild, count(counts.get(name)));
			if (box.children[place] !== chip) box.insertBefore(chip, box.children[place] || null);
		});
		for (const chip of known.values()) chip.remove();
	}

	parts() {
		const text = this.box.value.trim(), parts = [];
		if (text) parts.push([($("not").checked ? "NOT " : "") + text, () => { this.box.value = ""; this.apply(); }]);
		if (this.levels.size) parts.push([`level ${[...this.levels].join(", ")}`, () => { this.levels.clear(); this.apply(); }]);
		if (this.workers.size) parts.push([`worker ${[...this.workers].join(", ")}`, () => { this.workers.clear(); this.apply(); }]);
		return parts;
	}

	drawActive(shown) {
		const hidden = this.total - shown;
		put("shown", `${count(shown)} of ${count(this.total)} shown${hidden ? `, ${count(hidden)} hidden` : ""}`);
		const parts = this.parts();
		const key = JSON.stringify([parts.map(([name]) => name), this.off]);
		if (this.activeKey === key) return;
		this.activeKey = key;
		$("parts").replaceChildren(...parts.map(([name, drop]) => h("span", { class: "part" }, inline(name),
			h("button", { onclick: drop, "aria-label": `remove filter ${inline(name)}` }, "×"))));
		$("switch").hidden = !parts.length;
		put("switch", this.off ? "filters on" : "filters off");
		$("switch").setAttribute("aria-pressed", String(this.off));
		document.body.classList.toggle("filters-off", this.off);
	}
}
