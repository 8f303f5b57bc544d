// The page's words in the visitor's language, from the words file of the other page.

const LANGUAGES = ["en", "zh-CN", "ja"];

/** Return the language to speak: the chosen one, else the browser's, else English. */
function language() {
  const chosen = document.cookie.match(/(?:^|; )kaogan-language=([\w-]+)/)?.[1];
  if (LANGUAGES.includes(chosen)) {
    return chosen;
  }
  const own = (navigator.language || "en").toLowerCase().split("-")[0];
  return LANGUAGES.find((tag) => tag.toLowerCase().split("-")[0] === own) ?? "en";
}

/** The words in one language. */
export class Words {
  /** @param {Record<string, Record<string, string>>} texts key → language → sentence */
  constructor(texts) {
    this.texts = texts;
    this.language = language();
    document.documentElement.lang = this.language;
  }

  /** Load assets/words.json, which `make web` puts beside the page. */
  static async load() {
    return new Words(await (await fetch("words.json")).json());
  }

  /**
   * Return a sentence.
   * @param {string} key
   * @param {Record<string, string | number>} values for its {names}
   * @param {string} otherwise where there are no words for the key
   */
  say(key, values = {}, otherwise = key) {
    const sentence = this.texts[key]?.[this.language] ?? otherwise;
    return sentence.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  }

  /** Write the words of all elements that name theirs. */
  write(root = document) {
    for (const element of root.querySelectorAll("[data-word]")) {
      element.textContent = this.say(element.dataset.word);
    }
    for (const element of root.querySelectorAll("[data-html]")) {
      element.innerHTML = this.say(element.dataset.html); // our own file's
    }
  }

  /** Say what was wrong with a recipe: in full in English, its parts' names otherwise. */
  blame(faults, sentences) {
    if (this.language === "en" || !faults.length) {
      return sentences.join(" ");
    }
    return this.say("fault.parts", { parts: faults.join(", ") });
  }
}
