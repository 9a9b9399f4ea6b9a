// Our flags in the GUI's text field for additional flags, and the fields that show them.
//
// An expression: form -> functions that are called, in the browser, with the values of the page's components and
// give back new ones. In the browser, because a round trip to the GUI for every key that is pressed is slow, and
// gradio 3 drops those that come while one is under way.
//
// form.flags: the flag table, each {name, feature, default, choices, numbers, most, expected, label}, the fields in its
// order. A flag that takes several numbers has a text for its field, with blanks between them.
// form.words: how the GUI splits the text, a key of WORDS. form.ours: how our names begin. form.texts: what is said.
(form) => {
  // v24 and later split at what Python calls white space and drop double quotes; before, a shell reads the text.
  const BLANK = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const WORDS = {
    split: [new RegExp(`[^${BLANK}]+`, "g"), /"/g, ""],
    posix: [/(?:"(?:\\[^]|[^"\\])*"|'[^']*'|\\[^]|[^ \t\n])+/g, /"((?:\\[^]|[^"\\])*)"|'([^']*)'|\\([^])/g, "$1$2$3"],
    windows: [/(?:"[^"]*"|[^ \t\r\n])+/g, /"/g, ""],
  };
  const NUMBER = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$/;
  const byName = new Map(form.flags.map((flag) => [flag.name, flag]));
  const fields = form.flags.filter((flag) => flag.label);
  // What an event leaves as it is. A value, even the same one, would undo what is being typed.
  const SAME = { __type__: "update" };
  // What an event gives that changes nothing: no answer, ever. With any answer the GUI draws the page anew, which in v26
  // takes longer than a key that is pressed.
  const NOTHING = new Promise(() => {});
  const answer = (values) => (values.every((one) => one === SAME) ? NOTHING : values);
  // section -> the text before the fields wrote, and what they wrote since, until the page tells that it shows it
  const written = {};
  const noted = {}; // section -> the note that is shown

  const isSwitch = (flag) => !flag.choices.length && !flag.numbers;
  const standard = (flag) => (flag.most > 1 ? "" : flag.default); // what the field shows where the flag is not given

  const wordsOf = (text) => {
    const [pattern, quotes, inner] = WORDS[form.words];
    return [...text.matchAll(pattern)].map((found) => ({
      start: found.index,
      end: found.index + found[0].length,
      text: found[0].replace(quotes, inner),
    }));
  };

  // The value that a flag gets from a word, null for none; undefined where it takes no such value.
  const valueOf = (flag, word) => {
    if (isSwitch(flag)) return word === null ? true : undefined;
    if (word === null) return undefined;
    if (flag.choices.length) return flag.choices.includes(word) ? word : undefined;
    const { least, most, excluded, whole } = flag.numbers;
    const value = Number(word);
    const fits = NUMBER.test(word) && Number.isFinite(value) && value >= least && value !== excluded;
    return fits && (most === null || value <= most) && (!whole || /^[+-]?\d+$/.test(word)) ? value : undefined;
  };

  // The value of its field that a flag gets from some words; undefined where it does not take them.
  const valueOfAll = (flag, words) => {
    const values = words.map((word) => valueOf(flag, word));
    if (flag.most === 1) return values[0];
    const fits = !values.includes(undefined) && values.length <= flag.most && new Set(values).size === values.length;
    return fits ? words.join(" ") : undefined;
  };

  // What of ours stands in a text, in its order: {flag, value, start, end, at}, `at` where the value begins if it is a
  // word of its own; or {name, word, flag}, which no run takes for one of our flags, or not with that value.
  const read = (text) => {
    const found = [];
    const words = wordsOf(text);
    for (let i = 0; i < words.length; i += 1) {
      const [, name, rest] = /^(--[^=]*)(?:=([^]*))?$/.exec(words[i].text) || [];
      const flag = byName.get(name);
      const next = words[i + 1];
      if (flag) {
        const apart = rest === undefined && !isSwitch(flag) && next !== undefined && !next.text.startsWith("--");
        const given = [apart ? next.text : rest === undefined ? null : rest];
        while (apart && flag.most > 1 && i + given.length + 1 < words.length) {
          const another = words[i + given.length + 1].text;
          if (valueOf(flag, another) === undefined) break;
          given.push(another);
        }
        const value = valueOfAll(flag, given);
        if (value === undefined) {
          found.push({ flag, name, word: given[0] === null ? null : given.join(" ") });
          continue;
        }
        const one = { flag, value, start: words[i].start, at: apart ? next.start : null };
        if (apart) i += given.length;
        found.push({ ...one, end: words[i].end });
      } else if (name !== undefined && form.ours.some((start) => name.startsWith(start))) {
        found.push({ name, word: null });
      }
    }
    return found;
  };

  const valid = (text) => read(text).filter((one) => one.value !== undefined);
  // Of a flag that is given twice, the last counts.
  const shown = (text) => fields.map((flag) => valid(text).reduce((last, one) => (one.flag === flag ? one.value : last), standard(flag)));

  // A flag is removed with one of the blanks next to it: the one that was added with it.
  const without = (text, { start, end }) =>
    start > 0 ? text.slice(0, start - 1) + text.slice(end) : text.slice(end + (end < text.length ? 1 : 0));

  const write = (text, flag, value) => {
    if (shown(text)[fields.indexOf(flag)] === value) return text;
    const here = valid(text);
    const mine = here.filter((one) => one.flag === flag);
    if (value === standard(flag)) return mine.reduceRight(without, text);
    const several = String(value).includes(" "); // which only words of their own can give
    const word = isSwitch(flag) ? flag.name : `${flag.name}${several ? " " : "="}${value}`;
    if (mine.length) {
      const { start, end, at } = mine[mine.length - 1];
      return text.slice(0, at === null ? start : at) + (at === null ? word : value) + text.slice(end);
    }
    // in front of the user's text, where nothing of it (a comment, a redirection) can swallow it
    if (!here.length) return text === "" ? word : `${word} ${text}`;
    const { end } = here[here.length - 1];
    return `${text.slice(0, end)} ${word}${text.slice(end)}`;
  };

  const faultOf = (flag, name, word) => {
    if (!flag) return `${name}: ${form.texts.unknown}`;
    return `${name} ${word === null ? "has no value" : `is '${word}'`}: ${flag.expected}`;
  };

  const remarks = (text) => {
    const found = read(text);
    const here = valid(text);
    const given = (name) => here.some((one) => one.flag.name === name);
    const value = (name) => here.reduce((last, one) => (one.flag.name === name ? one.value : last), byName.get(name).default);
    const { enable, schedule, width, beta, power } = form.names;
    const said = found.filter((one) => one.value === undefined).map((one) => faultOf(one.flag, one.name, one.word));
    const idle = form.flags.find((flag) => flag.feature === byName.get(enable).feature && flag.name !== enable && given(flag.name));
    if (!given(enable) && idle) said.push(`${idle.name} ${form.texts.noEma}`);
    else if (given(enable) && given(schedule) && given(beta)) said.push(form.texts.twoSchedules);
    else if (given(enable) && given(width) !== (value(schedule) === power)) said.push(form.texts.widthWithoutPower);
    for (const word of wordsOf(text)) {
      const name = [...byName.keys()].find((one) => ` ${word.text} `.split(/[\s=]/).includes(one));
      if (/\s/.test(word.text) && name && form.words !== "split") said.push(`${name}: ${form.texts.quoted}`);
    }
    const others = here.filter((one) => !one.flag.label).map((one) => text.slice(one.start, one.end));
    return others.length ? [...said, `${form.texts.others}: ${others.join(" ")}`] : said;
  };

  const escaped = (text) => text.replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);
  const note = (section, text, ...more) => {
    const now = [...remarks(text), ...more].map((one) => `<p>${escaped(one)}</p>`).join("");
    if ((noted[section] || "") === now) return SAME;
    noted[section] = now;
    return now;
  };

  // The page may still show an older text than the fields have written.
  const latest = (section, text) => {
    const texts = written[section] || [];
    return texts.includes(text) ? texts[texts.length - 1] : text;
  };
  const change = (section, text, flag, value) => {
    const before = latest(section, text);
    const after = write(before, flag, value);
    if (after === before) return [before === text ? SAME : after, note(section, after)];
    const texts = written[section] || [];
    written[section] = [...(texts.includes(text) ? texts : [text]), after];
    return [after, note(section, after)];
  };

  // What a field's value means; undefined where its flag does not take it.
  const wanted = (flag, value) => {
    if (isSwitch(flag)) return Boolean(value);
    if (value === null || value === undefined) return standard(flag);
    const words = flag.most > 1 ? String(value).split(/[\s,]+/).filter(Boolean) : [String(value)].filter(Boolean);
    return words.length ? valueOfAll(flag, words) : standard(flag);
  };

  // Whatever goes wrong in here, the page stays as it is.
  const guarded = (work) => {
    try {
      return answer(work());
    } catch (error) {
      console.error("kohya_ext", error);
      return NOTHING;
    }
  };

  return {
    // The text has changed -> all fields, and the note. What the fields have written they show already.
    fromText: (section, given, ...values) =>
      guarded(() => {
        const text = given || "";
        const texts = written[section] || [];
        if (texts.includes(text)) {
          written[section] = texts.slice(texts.lastIndexOf(text));
          return [];
        }
        delete written[section];
        return [...shown(text).map((value, i) => (value === values[i] ? SAME : value)), note(section, text)];
      }),
    // A person changes field number `index` -> the text, and the note. What the flag does not take is not written.
    fromField: (section, index, given, value) =>
      guarded(() => {
        const flag = fields[index];
        const text = given || "";
        const now = wanted(flag, value);
        if (now === undefined) return [SAME, note(section, text, faultOf(flag, flag.label, String(value)))];
        return change(section, text, flag, now);
      }),
    // A person leaves field number `index` -> the text, the field, and the note: now both say the same.
    left: (section, index, given, value) =>
      guarded(() => {
        const flag = fields[index];
        const text = given || "";
        const now = wanted(flag, value);
        if (now === undefined) return [SAME, shown(latest(section, text))[index], note(section, latest(section, text))];
        const [after, said] = change(section, text, flag, now);
        return [after, now === value ? SAME : now, said];
      }),
  };
}
