// Tracebacks to read: own frames first, library frames folded, causes and groups as a tree.
import { h, visible, summaryOf } from "./text.js";

const FOREIGN = /\/(site|dist)-packages\/|\/lib(64)?\/python\d|<frozen |^<string>$|\/importlib\//;
const HEAD = /^(Exception Group )?Traceback \(most recent call last\):/;
const FRAME = /^ {1,4}File "([^"]*)", line (\d+)(?:, in (.*))?$/;
const CAUSE = "The above exception was the direct cause of the following exception:";
const DURING = "During handling of the above exception, another exception occurred:";

// The text that Python prints, as a list of exceptions, each the cause of the next one;
// members of a group are such lists.
export function parseTraceback(text) {
	const top = [];
	const levels = new Map([[0, { nodes: top, node: null, link: "" }]]);
	let grouped = false;
	for (const line of text.split("\n")) {
		let rest = line, column = 0;
		const found = /^( *)([|+])(.*)$/.exec(line);
		if (found && (grouped || /^\+ Exception Group/.test(line.trim()))) {
			grouped = true;
			column = found[1].length;
			const member = /^\+(-\+)?-+ (\d+|\.\.\.) -+$/.exec(line.trim());
			if (member) {
				const inner = member[1] ? column + 2 : column;
				const parent = levels.get(inner - 2)?.node || levels.get(0).node;
				const nodes = [];
				if (parent) parent.members.push(nodes);
				levels.set(inner, { nodes, node: null, link: "" });
				continue;
			}
			if (/^\+-+$/.test(line.trim())) { levels.delete(column); continue; }
			if (!levels.has(column)) levels.set(column, levels.get(0));
			rest = found[3].replace(/^ /, "");
		}
		take(levels.get(column) || levels.get(0), rest);
	}
	return top;
}

function take(level, text) {
	if (HEAD.test(text)) {
		level.node = { frames: [], error: [], members: [], link: level.link };
		level.nodes.push(level.node);
		level.link = "";
		return;
	}
	if (text === CAUSE || text === DURING) {
		level.link = text === CAUSE ? "caused by" : "while handling";
		return;
	}
	const frame = FRAME.exec(text);
	const node = level.node;
	if (frame && node && !node.error.length) {
		node.frames.push({ path: frame[1], line: frame[2], name: frame[3] || "", code: [] });
	} else if (node && !node.error.length && /^ {3}/.test(text) && node.frames.length) {
		node.frames[node.frames.length - 1].code.push(text.replace(/^ {4}/, ""));
	} else if (text.trim()) {
		if (!node) {
			level.node = { frames: [], error: [], members: [], link: level.link };
			level.nodes.push(level.node);
			level.link = "";
		}
		level.node.error.push(text);
	}
}

const isOwn = (frame) => !FOREIGN.test(frame.path);

function frameRow(frame) {
	const place = `${frame.path}:${frame.line}`;
	return h("div", { class: isOwn(frame) ? "frame own" : "frame" },
		h("span", { class: "place" }, visible(place)),
		frame.name ? h("span", { class: "in" }, ` in ${visible(frame.name)}`) : null,
		frame.code.length ? h("pre", {}, visible(frame.code.join("\n"))) : null);
}

// The innermost frame first; runs of library frames are folded.
function frameList(frames) {
	const rows = [];
	let folded = [];
	const close = () => {
		if (folded.length) {
			const label = folded.length === 1 ? "1 library frame" : `${folded.length} library frames`;
			rows.push(h("details", { class: "library" }, h("summary", {}, label), ...folded.map(frameRow)));
		}
		folded = [];
	};
	for (const frame of [...frames].reverse()) {
		if (isOwn(frame)) { close(); rows.push(frameRow(frame)); } else folded.push(frame);
	}
	close();
	return rows;
}

function tree(nodes, label = "") {
	const node = nodes[nodes.length - 1];
	const box = h("div", { class: "exception" },
		h("div", { class: "error" }, label ? h("span", { class: "dim" }, `${label} `) : null,
			visible(node.error.join("\n") || "exception")),
		...frameList(node.frames));
	node.members.forEach((member, number) => {
		if (member.length) box.append(tree(member, `${number + 1} of ${node.members.length}`));
	});
	if (nodes.length > 1) box.append(tree(nodes.slice(0, -1), node.link || "after"));
	return box;
}

export function tracebackView(text, error) {
	const nodes = text ? parseTraceback(text) : [];
	const view = h("div", { class: "traceback" });
	if (nodes.some((node) => node.frames.length)) view.append(tree(nodes));
	else if (summaryOf(error)) view.append(h("div", { class: "error" }, visible(summaryOf(error))));
	if (text) {
		view.append(h("details", { class: "raw" }, h("summary", {}, "as it was logged"),
			h("pre", {}, visible(text))));
		if (view.children.length === 1) view.firstChild.open = true;
	}
	return view;
}
